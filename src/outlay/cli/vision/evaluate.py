"""`outlay vision eval`: how well a detector finds the boxes of labelled pictures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number
from outlay.cli.vision.detect import lines_of

if TYPE_CHECKING:
    from outlay.vision.detect.evaluate import Score


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    parser.add_argument("model", metavar="MODEL", help="a detector as `outlay vision detect` takes it")
    add_data(parser)
    parser.add_argument("--layers", type=number(1, whole=True), metavar="N", help="decoder layers that are run (all)")
    parser.add_argument(
        "--queries", type=number(1, whole=True), metavar="N", help="places that are refined (as trained)"
    )
    parser.add_argument("--size", type=number(32, whole=True), metavar="N", help="pixels a side that pictures are "
                        "stretched to (as trained)")  # fmt: skip
    parser.add_argument("--names", type=Path, metavar="FILE", help="the detector's classes, one a line")
    parser.add_argument("--interval", action="store_true", help="resample the pictures for 95 %% intervals")
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def add_data(parser: Parser, *, required: bool = True) -> None:
    """Adds the options that name pictures with boxes."""
    parser.add_argument("--data", required=required, metavar="DATA", help="a COCO file (.json), a VOC folder or "
                        "FOLDER:SPLIT, or digits, scenes that are made")  # fmt: skip
    parser.add_argument("--bad-boxes", choices=("repair", "refuse"), default="repair", help="what is done with boxes "
                        "that are inverted, empty or outside of their picture (repair, and say how many)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Evaluates; returns the exit status."""
    from outlay.lm import set_threads
    from outlay.vision import detect
    from outlay.vision.detect.datasets import read_dataset
    from outlay.vision.detect.detections import at_side
    from outlay.vision.detect.evaluate import evaluate

    set_threads(args.threads)
    loaded = detect.load(args.model, lines_of(args.names) if args.names else None).deployed()
    if args.size is not None:
        loaded, remark = at_side(loaded, args.size)
        _tell(remark)
    data = read_dataset(args.data, args.bad_boxes)
    for line in data.remarks:
        _tell(line)
    with terminal.Progress(quiet=args.quiet) as progress:
        found = evaluate(
            loaded, data, layers=args.layers, queries=args.queries, interval=args.interval, progress=progress
        )
    if args.json:
        print(json.dumps({"model": args.model, "data": args.data, "side": loaded.side, **found.as_dict()}))
        return 0
    print(table_of(found))
    return 0


def table_of(found: Score) -> str:
    """Returns the figures as a table, with those of each class."""
    rows = [
        (name, _percent(value), _between(found, key))
        for name, key, value in (
            ("AP", "ap", found.ap), ("AP50", "ap50", found.ap50), ("AP75", "ap75", found.ap75),
            ("AP, small", "", found.ap_small), ("AP, medium", "", found.ap_medium), ("AP, large", "", found.ap_large),
            *((f"AP, {name}", "", value) for name, value in found.classes.items()),
        )
    ]  # fmt: skip
    header = (f"{found.pictures} pictures", "%", "95 %")
    if not found.intervals:
        return terminal.table(header[:2], [row[:2] for row in rows], sys.stdout)
    return terminal.table(header, rows, sys.stdout)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _between(found: Score, key: str) -> str:
    if key not in found.intervals:
        return ""
    low, high = found.intervals[key]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _tell(line: str) -> None:
    if line:
        print(f"outlay: {line}", file=sys.stderr)
