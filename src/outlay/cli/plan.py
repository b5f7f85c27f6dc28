"""`outlay plan`: how much a draft head would gain, by its size, its training and the batch, and which one to train."""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.cli import terminal
from outlay.cli.arguments import number
from outlay.errors import FailureError, UsageError

if TYPE_CHECKING:
    from outlay.lm import LM
    from outlay.scaling.plan import Plan

DESCRIPTION = "Fits the scaling laws of drafts to measurements, predicts, and says which draft to train (Scylla)."
EXAMPLES = """where the measurements come from:
  (nothing)       draft heads trained for this: of one layer on --tokens, of --layers on the most but one of --tokens
  --drafts FILE   draft heads that you have trained, measured on text that the model writes
  --table FILE    a table of yours, JSON: [{"value": 2.1, "error": 0.05, "tokens": 100000, "layers": 1}, ...]

examples:
  outlay plan                                         # some hours for the default model; can be stopped
  outlay plan --tokens 10k,20k,40k,80k --layers 1 --batch 1,8
  outlay plan --table points.json --at 1M:1,1M:2,10M:1
  outlay plan --drafts small.safetensors medium.safetensors large.safetensors huge.safetensors
  outlay plan --split 22M --hidden 256 --inputs 125 --outputs 40 --batch 1,16 --audio 10

--split plans an encoder-decoder in place of a draft: from the times of a layer that are measured here it predicts what
each split of the parameters between encoder and decoder takes.

tau is the mean acceptance length: tokens of a round, with a chain of 5 drafted tokens at temperature 0.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("--model", metavar="M", help="an alias, a folder, a .gguf file or a hub id")
    parser.add_argument("--dtype", default="auto", metavar="D", help="how the weights are held (auto)")
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--table", type=Path, metavar="FILE", help="fit these points; no model is needed")
    parser.add_argument(
        "--drafts", type=Path, nargs="+", metavar="FILE", help="fit the acceptance of these draft heads"
    )
    parser.add_argument("--tokens", type=amounts, metavar="N,N,...", default=amounts("25k,50k,100k,200k,400k"),
                        help="training tokens of draft heads of one layer (25k,50k,100k,200k,400k)")  # fmt: skip
    parser.add_argument("--layers", type=amounts, metavar="N,N,...", default=amounts("1,2,4,8"),
                        help="layers of draft heads on the most but one of --tokens (1,2,4,8)")  # fmt: skip
    parser.add_argument("--at", type=sizes, metavar="T:L,...", default=[],
                        help="also predict tau for T training tokens and L layers")  # fmt: skip
    parser.add_argument("--budget", type=amounts, metavar="N", help="the most training tokens (the most measured)")
    parser.add_argument("--bytes", type=amounts, metavar="N", help="the draft head's largest file")
    parser.add_argument("--batch", type=amounts, metavar="N,N,...", default=[1, 4, 16], help="requests (1,4,16)")
    parser.add_argument("--vocabulary", type=number(1, whole=True), default=8192, metavar="N",
                        help="tokens that a draft head drafts (%(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the draft heads trained for this are kept")
    parser.add_argument(
        "--split", type=amounts, metavar="N", help="plan the split of N weights in encoder and decoder layers"
    )
    for name, default, what in (
        ("hidden", 256, "width of the hidden states, with --split"),
        ("inputs", 512, "encoder places of an input, with --split"),
        ("outputs", 32, "tokens of an output, with --split"),
    ):
        parser.add_argument(f"--{name}", type=number(1, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip
    parser.add_argument("--audio", type=number(above=0), metavar="S", help="seconds of audio of an input, with --split")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to FILE")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def amounts(text: str) -> list[int]:
    """Returns the whole numbers in "25k,1M,8", ascending; k and M stand for thousands and millions."""
    found = [re.fullmatch(r"(\d+(?:\.\d+)?)([kM]?)", part.strip()) for part in text.split(",")]
    values = [round(float(part[1]) * {"": 1, "k": 1e3, "M": 1e6}[part[2]], 6) for part in found if part is not None]
    if len(values) < len(found) or not all(value >= 1 and value == int(value) for value in values):
        raise argparse.ArgumentTypeError(f"must be whole numbers like 8 or 25k,100k,1M, not {text!r}")
    return sorted({int(value) for value in values})


def sizes(text: str) -> list[tuple[int, int]]:
    """Returns the pairs (tokens, layers) in "1M:1,400k:2"."""
    pairs = [part.split(":") for part in text.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"must be TOKENS:LAYERS like 1M:1,400k:2, not {text!r}")
    return [(amounts(tokens)[0], amounts(layers)[0]) for tokens, layers in pairs]


def run(args: argparse.Namespace) -> int:
    """Measures, fits, predicts and chooses; returns the exit status."""
    from outlay.lm import DEFAULT_MODEL
    from outlay.machine import describe
    from outlay.scaling.report import report

    if args.table is not None and args.drafts:
        raise UsageError("give --table or --drafts, not both")
    if args.split is not None:
        return _split(args)
    with terminal.Progress(quiet=args.quiet) as progress:
        plan = _planned(args, progress)
    plan.predict_all(args.at)
    machine = describe(("outlay", "torch")) | {"model": args.model or DEFAULT_MODEL}
    written = {"machine": machine} | plan.as_json()
    print(report(written))
    _write(args.json, written)
    return 0


def _split(args: argparse.Namespace) -> int:
    """Predicts the splits of a budget of parameters; returns the exit status."""
    from outlay.lm import set_threads
    from outlay.machine import describe
    from outlay.scaling.report import split_report
    from outlay.scaling.split import SplitTask, measure_layers, plan_split

    if args.table is not None or args.drafts or args.model is not None:
        raise UsageError("--split plans a network that is not there yet; leave --model, --table and --drafts out")
    tasks = [
        SplitTask(args.split[-1], args.hidden, args.inputs, args.outputs, batch, args.audio) for batch in args.batch
    ]
    set_threads(args.threads)
    dtype = "float32" if args.dtype == "auto" else args.dtype
    with terminal.Progress(quiet=args.quiet) as progress:
        clock = time.process_time if args.threads == 1 else time.perf_counter
        costs = measure_layers(args.hidden, args.vocabulary, [args.inputs, *args.batch], dtype, clock, progress)
    machine = describe(("outlay", "torch")) | {"model": f"random layers of width {args.hidden}, {dtype}"}
    plans = [{"task": asdict(task), "splits": [split.as_json() for split in plan_split(task, costs)]} for task in tasks]
    written = {"machine": machine, "split": plans}
    print(split_report(written))
    _write(args.json, written)
    return 0


def _write(path: Path | None, written: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        path.write_text(json.dumps(written, indent=1) + "\n")
    except OSError as error:
        raise FailureError(f"can't write {path}: {error.strerror}") from error


def _planned(args: argparse.Namespace, progress: terminal.Progress) -> Plan:
    from outlay.scaling.plan import Plan, PlanOptions, measure_points, train_points
    from outlay.scaling.points import read_table

    budget, max_bytes = (None if amount is None else amount[-1] for amount in (args.budget, args.bytes))
    options = PlanOptions(args.batch, budget, max_bytes, args.vocabulary, args.seed)
    if args.table is not None:
        plan = Plan.of(read_table(args.table))
        if args.model is not None:
            plan.choose(_load(args, progress), options, progress)
        return plan
    lm = _load(args, progress)
    if args.drafts:
        points = measure_points(lm, args.drafts, options, args.work, progress)
    else:
        points = train_points(lm, args.tokens, args.layers, options, args.work, progress)
    plan = Plan.of(points)
    plan.choose(lm, options, progress)
    plan.time_batches(lm, args.drafts[-1] if args.drafts else None, options.seed, progress)
    return plan


def _load(args: argparse.Namespace, progress: terminal.Progress) -> LM:
    from outlay.lm import load

    progress("starting", 0, 0)
    return load(args.model, dtype=args.dtype, threads=args.threads, progress=progress)
