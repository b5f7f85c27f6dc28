"""`outlay vision choose`: which detector finds most within a budget."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number, one_of
from outlay.cli.vision.evaluate import add_data
from outlay.errors import UsageError, nearest

if TYPE_CHECKING:
    from outlay.budget import Budget
    from outlay.vision.detect.choose import Choice
    from outlay.vision.detect.ways import Priced

NOTES = """MODEL is what `outlay vision detect` takes. Each is tried with its layers, with all, three quarters, half
and a quarter of its queries, with pictures of its own size and smaller ones, and with one thread and several; the
options give other values. Ways that are over the budget in some calls, all in turn, are dropped before quality is
measured. Those in front are then called in turn until their three fastest calls agree within 3 %, and the winner twice
more, for two seconds each. `outlay vision detect --measure` measures in that way, too.

Without --data, quality is what the authors publish for COCO, of weights that are not yours.

examples:
  outlay vision choose outlay/cells-atto --data cells:test --budget seconds=0.02
  outlay vision choose mine other --data cells.json --budget seconds=0.05,weight_bytes=4e6 --threads 1
  outlay vision choose --budget flops=5.5e9
"""
PERCENT = 100
OTHERS = " for other weights than yours; give your file where the command names the size"


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    parser.epilog = NOTES
    parser.add_argument("models", nargs="*", metavar="MODEL", help="detectors; without --data, sizes (all eight)")
    parser.add_argument("--task", type=one_of(("detect",)), default="detect", metavar="T", help="detect")
    add_data(parser, required=False)
    parser.add_argument("--budget", required=True, metavar="k=v,...", help="caps on one picture: seconds, cpu_seconds, "
                        "flops, mem_elements, moved_bytes, weight_bytes")  # fmt: skip
    for name, what in (("layers", "decoder layers"), ("queries", "places that are refined"),
                       ("sizes", "pixels a side of pictures"), ("threads", "threads")):  # fmt: skip
        parser.add_argument(f"--{name}", type=whole_numbers, default=(), metavar="N,...", help=f"{what} that are tried")
    parser.add_argument("--dtypes", default="float32,bfloat16", metavar="T,...", help="what backbone and encoder "
                        "compute in (float32,bfloat16)")  # fmt: skip
    parser.add_argument("--rounds", type=number(1, whole=True), default=3, metavar="N", help="timed calls of each way "
                        "before quality is measured (3)")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def whole_numbers(text: str) -> tuple[int, ...]:
    """Returns the numbers in "1,2,3"."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers like 1,2,3, not {text!r}") from None
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more each, not {text!r}")
    return found


def run(args: argparse.Namespace) -> int:
    """Chooses; returns the exit status."""
    from outlay.budget import Budget
    from outlay.vision.detect.choose import as_dict

    budget = Budget.parse(args.budget)
    with terminal.Progress(quiet=args.quiet) as progress:
        found = _published(args, budget, progress) if args.data is None else _measured(args, budget, progress)
    if args.json:
        print(json.dumps(as_dict(found)))
        return 0
    print(_table(found, budget))
    return 0


def _measured(args: argparse.Namespace, budget: Budget, progress: Callable[[str, int, int], None]) -> Choice:
    from outlay.vision import detect
    from outlay.vision.detect.choose import choose
    from outlay.vision.detect.datasets import read_dataset
    from outlay.vision.detect.ways import DTYPES, Options

    if not args.models:
        raise UsageError("name the detectors to choose from; they are measured on --data")
    dtypes = tuple(name for name in args.dtypes.split(",") if name)
    strange = next((name for name in dtypes if name not in DTYPES), None)
    if strange is not None or not dtypes:
        raise UsageError(f"--dtypes must be some of {', '.join(DTYPES)}, not {args.dtypes!r}")
    models = {name: detect.load(name).deployed() for name in args.models}
    data = read_dataset(args.data, args.bad_boxes)
    for line in data.remarks:
        print(f"outlay: {line}", file=sys.stderr)
    options = Options(args.layers, args.queries, args.sizes, args.threads, dtypes)
    return choose(models, data, budget, options, rounds=args.rounds, progress=progress)


def _published(args: argparse.Namespace, budget: Budget, progress: Callable[[str, int, int], None]) -> Choice:
    from outlay.vision.detect.choose import choose_published
    from outlay.vision.detect.sizes import SIZES

    for name in args.models:
        if name not in SIZES:
            hint = "; to choose by your own labels, give --data" if Path(name).exists() else ""
            raise UsageError(
                f"there is no DEIMv2 of size {name!r}{nearest(name, SIZES)}; there are {', '.join(SIZES)}{hint}"
            )
    return choose_published(budget, args.models, rounds=args.rounds, progress=progress)


def _table(found: Choice, budget: Budget) -> str:
    """Returns the ways on the front, the winner and its command."""
    from outlay.vision.detect.choose import PUBLISHED

    header = ("", "model", "layers", "queries", "px", "threads", "type", "AP", "95 %", "ms", "GFLOP", "moved MB")
    rows = [_row(each, each.way == found.winner.way) for each in found.front]
    kept = [place for place, name in enumerate(header) if name not in ("95 %", "ms") or any(row[place] for row in rows)]
    lines = [
        terminal.table([header[place] for place in kept], [[row[place] for place in kept] for row in rows], sys.stdout),
        f"quality: {found.basis}" + (OTHERS if found.basis == PUBLISHED else ""),
        *(f"left out: {line}" for line in found.dropped),
        f"the best within {', '.join(f'{name}={cap:g}' for name, cap in budget.caps.items())}: "
        f"{found.winner.way.label}, AP {PERCENT * (found.winner.quality or 0):.1f}",
    ]
    if found.again is not None:
        lines.append(
            f"measured again: {1e3 * found.again.seconds:.1f} ms a picture, {found.away:.0%} from the first time, "
            f"{1e3 * found.winner.ledger.seconds:.1f} ms"
        )
        if found.unsettled:
            ways = "1 way" if len(found.unsettled) == 1 else f"{len(found.unsettled)} ways"
            lines.append(f"the fastest calls of {ways} never agreed: the machine is busy with other work")
    lines.append(found.winner.way.command())
    return "\n".join(lines)


def _row(each: Priced, wins: bool) -> Sequence[str]:
    way, spent = each.way, each.ledger
    between = "" if each.interval is None else " to ".join(f"{PERCENT * end:.1f}" for end in each.interval)
    return (
        "*" if wins else "", way.model, str(way.layers), str(way.queries), str(way.side), str(way.threads), way.dtype,
        f"{PERCENT * (each.quality or 0):.1f}", between, f"{1e3 * spent.seconds:.1f}" if spent.seconds else "",
        f"{spent.flops / 1e9:.2f}", f"{spent.amount('moved_bytes') / 1e6:.1f}",
    )  # fmt: skip
