"""`outlay shrink`: a model's weights in fewer bits, as a folder that every command loads."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.cli import terminal
from outlay.cli.arguments import number, one_of
from outlay.errors import UsageError
from outlay.tables import number as digits

if TYPE_CHECKING:
    from outlay.shrink import Report

DESCRIPTION = (
    "Shrinks the weights of a model's linear layers, and writes a folder that every other command loads. What was "
    "stopped goes on where it was when the same command is typed again."
)
EXAMPLES = """examples:
  outlay shrink smollm2-135m --method gptq --bits 4 --out small
  outlay shrink ./my-model --method gptq:group=128,act_order=true --bits 3 --calib texts.txt --out small
  outlay shrink smollm2-135m --method rtn --bits 4 --only mlp --out small
  outlay run "Why is the sky blue?" --model small
  outlay bench accuracy --against small
  outlay shrink --check small                         # sizes and ranges of what was written

`outlay methods` lists what shrinks, `outlay methods gptq` explains one.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay shrink MODEL --method NAME[:k=v,...] --out DIR [options]"
    parser.add_argument("model", nargs="?", metavar="MODEL", help="an alias, a folder, a .gguf file or a hub id")
    parser.add_argument("--method", metavar="NAME[:k=v,...]", help="how, with options")
    parser.add_argument("--bits", type=number(above=0), metavar="N", help="bits a weight: chooses the options")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder that is written")
    parser.add_argument(
        "--check", type=Path, metavar="DIR", help="check a folder that was written; status 1 if it is bad"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--calib", type=Path, metavar="FILE", help="a text that calibrates (what the model writes itself)")
    how.add_argument("--tokens", type=number(1, whole=True), default=8192, metavar="N",
                     help="tokens of the calibration, at most (%(default)s)")  # fmt: skip
    how.add_argument("--only", type=one_of(("attention", "mlp")), metavar="PART", help="shrink attention or mlp alone")
    how.add_argument("--plan", type=Path, metavar="FILE", help="methods by patterns of modules, as JSON: "
                     '{"*.down_proj": "gptq:bits=8", "*.0.*": "keep"}')  # fmt: skip
    how.add_argument(
        "--sequential", action="store_true", help="moments of the shrunk layers before, not of the float model"
    )
    how.add_argument("--tune", type=number(1, whole=True), nargs="?", const=100, metavar="N", help="tune each layer's "
                     "codebooks and norms (vptq) by N steps of gradient descent (100)")  # fmt: skip
    how.add_argument(
        "--seed", type=number(0, whole=True), default=0, metavar="N", help="of the text that it writes (0)"
    )
    how.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress and no table")


def run(args: argparse.Namespace) -> int:
    """Shrinks, or checks; returns the exit status."""
    if args.check is not None:
        return _check(args)
    for name in ("model", "method", "out"):
        if getattr(args, name) is None:
            option = "MODEL" if name == "model" else f"--{name}"
            raise UsageError(
                f"{option} is missing; for a start: outlay shrink smollm2-135m --method gptq --bits 4 --out small"
            )
    with terminal.Progress(quiet=args.quiet) as progress:
        progress("starting", 0, 0)
        from outlay import shrink
        from outlay.lm import set_threads

        set_threads(args.threads)
        report = shrink.run(
            args.model,
            args.method,
            args.out,
            bits=args.bits,
            calib=args.calib,
            tokens=args.tokens,
            plan=_plan(args.plan),
            only=args.only,
            sequential=args.sequential,
            tune=None if args.tune is None else shrink.Tuning(args.tune),
            seed=args.seed,
            progress=progress,
        )
    if args.json:
        print(json.dumps({**asdict(report), "folder": str(report.folder), "error": report.mean_error()}))
    elif not args.quiet:
        print(_table(report.rows))
        print(f"\n{_summary(report)}")
    return 0


def _plan(path: Path | None) -> Mapping[str, str]:
    from outlay.models.checkpoint import read_json

    if path is None:
        return {}
    if not path.is_file():
        raise UsageError(f"there is no plan {path}")
    plan = read_json(path)
    if not all(isinstance(value, str) for value in plan.values()):
        raise UsageError(f'{path} should map patterns of modules to methods or "keep", each a string')
    return plan


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a line for each decoder layer: the means over its matrices, and the worst of them."""
    lines = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        own = [row for row in rows if row["layer"] == layer]
        worst = max(own, key=lambda row: float(row["error"]))
        bits = 8 * sum(row["bytes"] for row in own) / sum(math.prod(row["shape"]) for row in own)
        lines.append(
            (str(layer), f"{bits:.3f}", digits(_mean(own, "unfed_error")), digits(_mean(own, "error")),
             f"{sum(row['seconds'] for row in own):.1f}", f"{worst['part']} {digits(worst['error'])}")
        )  # fmt: skip
    header = ("layer", "bits", "error without feedback", "with", "seconds", "worst")
    return terminal.table(header, lines, sys.stdout)


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return math.exp(sum(math.log(max(row[key], 1e-30)) for row in rows) / len(rows))


def _summary(report: Report) -> str:
    return (
        f"{report.folder}: {report.method}, {report.bits:.3f} bits a weight of the {len(report.rows)} matrices, "
        f"{report.file_bits:.3f} of the whole file; error {digits(report.mean_error())}, without feedback "
        f"{digits(report.mean_error('unfed_error'))}; {report.tokens} tokens {report.text}; {report.seconds:.0f} s"
    )


def _check(args: argparse.Namespace) -> int:
    from outlay import shrink

    rows = shrink.check(args.check)
    bad = [row for row in rows if row["wrong"]]
    if args.json:
        print(json.dumps({"matrices": rows, "wrong": len(bad)}))
    else:
        for row in bad:
            print(f"{row['module']}: {row['wrong']}")
        print(f"{args.check}: {len(rows)} matrices, {len(bad) or 'none'} of them wrong")
    return 1 if bad else 0
