"""`outlay compare`: the same prompts under several methods, in turn: a table, a report, and all that was measured."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.cli import terminal
from outlay.cli.arguments import number, one_of
from outlay.cli.interrupt import Terminated
from outlay.cli.run import DTYPES
from outlay.errors import UsageError

if TYPE_CHECKING:
    from outlay.compare.comparison import Comparison
    from outlay.compare.texts import TextComparison

DESCRIPTION = "Runs the same prompts under several methods, in turn, and shows what each spends and what it gives."
EXAMPLES = """examples:
  outlay compare --methods greedy,beam:width=4,length_penalty=0.8 --prompts prompts.txt --out first
  outlay compare --methods 'greedy,best_of:n=2|4|8' --temperature 0.8 --prompts gsm.jsonl --metric number --out gsm
  outlay compare --methods greedy,beam --prompts arithmetic:count=50 --metric number \\
                 --budget 'target_passes=16|32|none' --out budgets
  outlay compare --task detect --methods 'deimv2:model=mine|other,layers=1|2|3' --images cells:test --out cells
  outlay compare --from gsm --out gsm-again

methods: commas separate methods and options alike; a part that starts with name= is an option of the method before it.
  a|b in place of a value makes a method, or a budget, of each (quote it: | is the shell's too). Sampling options can
  be given to one method alone: sample:temperature=0.5
prompts: plain lines, or JSON lines with "prompt" or "messages" and what a metric needs ("answer", "tests");
  or a generated set of problems: arithmetic, arithmetic:count=50,seed=1
pictures: --task detect compares detectors on --images, which is a COCO file, a VOC folder or FOLDER:SPLIT, or digits;
  the metric is coco (AP, the default) or coco50. Options of deimv2: model, layers, queries, size, threads, dtype
metrics: exact regex number (need "answer"), tests (needs "tests"; runs the programs that the model wrote), logprob,
  judge:MODEL, python:FILE (a function score(prompt, text) that returns a number)

A comparison that was stopped goes on where it was when the same command is typed again.
"""
PASSED_ON = ("metric", "reference", "draft", "scorer", "dtype", "device", "threads", "batch", "max_tokens",
             "temperature", "top_k", "top_p", "min_p", "raw", "trace")  # fmt: skip
DECLARED = ("methods", "prompts", "seeds", "repeat", "budget", "model", "stop", "skip_bad", "limit", *PASSED_ON)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay compare --methods A,B,... --prompts FILE --out DIR [options]"
    parser.add_argument("--methods", metavar="A,B,...", help="what to compare; the first is what the others are "
                        "measured against")  # fmt: skip
    parser.add_argument("--task", type=one_of(("text", "detect")), default="text", metavar="T", help="what is "
                        "compared: text, or detect, on pictures (text)")  # fmt: skip
    parser.add_argument("--images", metavar="DATA", help="the pictures with their boxes, for --task detect")
    parser.add_argument("--prompts", metavar="FILE", help="the prompts: a file, or a generated set of problems by name")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder for all that comes out")
    parser.add_argument(
        "--from",
        dest="manifest",
        metavar="MANIFEST",
        help="run again what a manifest, or the folder that it is in, says",
    )

    what = parser.add_argument_group("what is compared")
    what.add_argument("--metric", metavar="NAME", help="the quality of a text: exact regex number tests logprob "
                      "judge:MODEL python:FILE")  # fmt: skip
    what.add_argument("--budget", metavar="k=v,...", help="caps on the ledger; 'target_passes=16|32' is each of them")
    what.add_argument("--reference", metavar="NAME", help="the method to measure against (default: the first)")
    what.add_argument("--seeds", type=number(1, whole=True), metavar="N", help="answers to each prompt, with the seeds "
                      "0 to N-1 (default: 1)")  # fmt: skip
    what.add_argument("--repeat", type=number(1, whole=True), metavar="N", help="times that each answer is measured "
                      "(default: 3)")  # fmt: skip
    what.add_argument("--batch", type=number(1, whole=True), metavar="N", help="prompts answered together (default: 1)")
    what.add_argument("--limit", type=number(1, whole=True), metavar="N", help="take the first N prompts only")
    what.add_argument(
        "--skip-bad", action="store_true", default=None, help="go on without the lines that can't be read"
    )
    what.add_argument("--trace", action="store_true", default=None, help="also a trace of each method on each prompt")

    what.add_argument("--ray", type=number(1, whole=True), nargs="?", const=0, metavar="N", help="spread the runs over "
                      "N processes of a Ray cluster or of this machine (default: one a core)")  # fmt: skip

    how = parser.add_argument_group("model and text")
    how.add_argument("--model", metavar="M", help="an alias (see `outlay models`), a folder, a .gguf file or a hub id")
    how.add_argument("--draft", metavar="M", help="a small model, for the methods that draft")
    how.add_argument("--scorer", metavar="S", help="what rates texts, for the methods that take a scorer: self, "
                     "python:FILE or a reward model")  # fmt: skip
    how.add_argument("--dtype", type=one_of(DTYPES), metavar="D", help=" ".join(DTYPES))
    how.add_argument("--device", metavar="D", help="a device of torch (default: cpu)")
    how.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    how.add_argument("--max-tokens", type=number(1, whole=True), metavar="N", help="new tokens at most (default: 128)")
    how.add_argument("--temperature", type=number(0), metavar="T", help="for the methods that draw; one that decodes "
                     "at 0 alone gets 0 (default: 0)")  # fmt: skip
    how.add_argument("--top-k", type=number(1, whole=True), metavar="K", help="draw from the K most probable tokens")
    how.add_argument("--top-p", type=number(above=0, most=1), metavar="P", help="draw from the fewest that hold P")
    how.add_argument(
        "--min-p", type=number(0, most=1), metavar="P", help="draw from those P times as likely as the best"
    )
    how.add_argument("--stop", action="append", metavar="S", help="end before this text; repeatable")
    how.add_argument("--raw", action="store_true", default=None, help="continue the prompts as they are, without the "
                     "chat template")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress and no table")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    out = Path(args.out)
    comparison = _of_pictures(args) if args.task == "detect" else _of_texts(args)
    with terminal.Progress(quiet=args.quiet) as progress:
        progress("starting", 0, 0)
        from outlay.compare.session import compare

        try:
            found = compare(comparison, out, command=["outlay", *sys.argv[1:]], progress=progress)
        except KeyboardInterrupt as stopped:
            status = 143 if isinstance(stopped, Terminated) else 130
        else:
            status = 0
    if status:
        print(f"outlay: stopped; what was done is in {out}, and the same command goes on from there", file=sys.stderr)
        return status
    if not args.quiet:
        from outlay.compare.summary import summary

        print(summary(found))
        print(_where(out))
    return 0


def _of_texts(args: argparse.Namespace) -> Comparison:
    """Returns the comparison of texts that the options or a manifest declare."""
    if args.images is not None:
        raise UsageError("--images are compared with --task detect")
    return replace(_again(args) if args.manifest is not None else _declared(args), workers=args.ray)


def _of_pictures(args: argparse.Namespace) -> Comparison:
    """Returns the comparison of detectors that the options or a manifest declare."""
    from outlay.compare.detection import PictureComparison, PictureDeclaration, declared_by
    from outlay.compare.sweep import split_methods, swept, swept_budgets

    for name in ("methods", "images") if args.manifest is None else ():
        if getattr(args, name) is None:
            raise UsageError(f"--{name} is missing; see `outlay compare --help`")
    foreign = next((name for name in ("prompts", "seeds", "ray", "model", "draft", "scorer", "trace")
                    if getattr(args, name) is not None), None)  # fmt: skip
    if foreign is not None:
        raise UsageError(f"--{foreign} is for texts; leave it out with --task detect")
    if args.manifest is not None:
        return PictureComparison(declared_by(Path(args.manifest)))
    return PictureComparison(PictureDeclaration(
        tuple(text for method in split_methods(args.methods) for text in swept(method)), args.images,
        args.metric or "coco", ("",) if args.budget is None else tuple(swept_budgets(args.budget)), args.reference,
        args.repeat or 3, args.limit,
    ))  # fmt: skip


def _declared(args: argparse.Namespace) -> TextComparison:
    """Returns the comparison that the options declare; prints which lines of the prompts were left out."""
    for name in ("methods", "prompts"):
        if getattr(args, name) is None:
            raise UsageError(f"--{name} is missing; see `outlay compare --help`")
    from outlay.compare.declaration import Declaration
    from outlay.compare.items import read_items
    from outlay.compare.sweep import split_methods, swept, swept_budgets
    from outlay.compare.texts import TextComparison
    from outlay.lm import DEFAULT_MODEL

    options: dict[str, Any] = {
        "repeats": args.repeat,
        "seeds": None if args.seeds is None else tuple(range(args.seeds)),
        "budgets": None if args.budget is None else tuple(swept_budgets(args.budget)),
        "stop": None if args.stop is None else tuple(args.stop),
        "model": args.model or DEFAULT_MODEL,
        "methods": tuple(text for method in split_methods(args.methods) for text in swept(method)),
    }
    options |= {name: getattr(args, name) for name in PASSED_ON}
    try:
        items, skipped = read_items(args.prompts, skip_bad=bool(args.skip_bad))
    except UsageError as error:
        if not str(error).startswith("line "):
            raise
        raise UsageError(f"{error}; --skip-bad goes on with the other lines") from error
    for reason in skipped:
        print(f"outlay: left out: {reason}", file=sys.stderr)
    declaration = Declaration(**{name: value for name, value in options.items() if value is not None})
    return TextComparison(declaration, items[: args.limit], args.prompts)


def _again(args: argparse.Namespace) -> TextComparison:
    """Returns the comparison of a manifest, with the prompts that lie beside it."""
    given = next((name for name in DECLARED if getattr(args, name) is not None), None)
    if given is not None:
        raise UsageError(f"--from takes everything from the manifest; leave out --{given.replace('_', '-')}")
    from outlay.compare.texts import reopen

    return reopen(Path(args.manifest))


def _where(out: Path) -> str:
    """Returns where the report and the data are, as text."""
    from outlay.compare import folder, plots

    drawn = ", ".join(sorted(path.name for path in out.glob("*.svg"))) if plots.available() else ""
    rows = [
        ("report", str(out / folder.REPORT)),
        ("data", f"{folder.RESULTS} and {folder.TABLE} beside it"),
        ("plots", (drawn and f"{drawn} and the same as .png") or "none: pip install 'outlay[plots]'"),
    ]
    return "\n" + "\n".join(f"{terminal.dim(f'{name:<7}', sys.stdout)} {value}" for name, value in rows)
