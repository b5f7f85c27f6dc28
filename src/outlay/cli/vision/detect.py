"""`outlay vision detect`: objects in pictures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number, one_of
from outlay.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from outlay.vision.detect.timing import Settled

    Picture: TypeAlias = npt.NDArray[np.uint8]


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    parser.add_argument("pictures", nargs="+", type=Path, metavar="IMAGE", help="pictures of any size")
    parser.add_argument("--model", required=True, metavar="M", help="a detector: the authors' .pth, a .safetensors "
                        "file, a folder of the hub, or one that outlay wrote")  # fmt: skip
    parser.add_argument("--threshold", type=number(0, most=1), default=0.4, metavar="S", help="the least score (0.4)")
    parser.add_argument("--layers", type=number(1, whole=True), metavar="N", help="decoder layers that are run (all)")
    parser.add_argument(
        "--queries", type=number(1, whole=True), metavar="N", help="places that are refined (as trained)"
    )
    parser.add_argument("--size", type=number(32, whole=True), metavar="N", help="pixels a side that pictures are "
                        "stretched to (as trained)")  # fmt: skip
    parser.add_argument("--dtype", type=one_of(("float32", "bfloat16")), default="float32", metavar="T",
                        help="what backbone and encoder compute in (float32)")  # fmt: skip
    parser.add_argument("--nms", type=number(0, most=1), metavar="IOU", help="leave out what overlaps a more certain "
                        "box of its class by more (off; 0.7 leaves double finds out)")  # fmt: skip
    parser.add_argument("--budget", metavar="k=v,...", help="caps: flops, mem_elements, moved_bytes of a picture; "
                        "seconds of the batch, which stops after the layer that met it")  # fmt: skip
    parser.add_argument("--names", type=Path, metavar="FILE", help="the classes' names, one a line")
    parser.add_argument("--draw", type=Path, metavar="DIR", help="write the pictures with their boxes")
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--measure", action="store_true", help="call again and again, a picture at a time, for two "
                        "seconds at least and until the fastest calls agree, and say what a picture takes")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a JSON object for each picture")


def run(args: argparse.Namespace) -> int:
    """Detects; returns the exit status."""
    from outlay.budget import Budget
    from outlay.lm import set_threads
    from outlay.pictures import read_picture
    from outlay.vision import detect
    from outlay.vision.detect.detections import at_side
    from outlay.vision.detect.ways import DTYPES

    set_threads(args.threads)
    budget = Budget.parse(args.budget) if args.budget else None
    loaded = detect.load(args.model, lines_of(args.names) if args.names else None).deployed()
    if args.size is not None:
        loaded, remark = at_side(loaded, args.size)
        if remark:
            print(f"outlay: {remark}", file=sys.stderr)
    if args.draw is not None and args.draw.exists() and not args.draw.is_dir():
        raise UsageError(f"--draw is a folder for pictures, and {args.draw} is a file")
    pictures = [read_picture(path) for path in args.pictures]
    options = {
        "threshold": args.threshold,
        "layers": args.layers,
        "queries": args.queries,
        "budget": budget,
        "dtype": DTYPES[args.dtype],
        "nms": args.nms,
    }
    every = detect.detect(loaded, pictures, **options)
    took = measured(lambda picture: detect.detect(loaded, [picture], **options), pictures) if args.measure else None
    for place, (path, picture, found) in enumerate(zip(args.pictures, pictures, every, strict=True)):
        if args.draw is not None:
            args.draw.mkdir(parents=True, exist_ok=True)
            detect.draw(picture, found, args.draw / f"{path.stem}.png")
        if args.json:
            row = {"file": str(path), "width": picture.shape[1], "height": picture.shape[0]}
            row |= {"detections": found.as_rows(), "ledger": found.ledger.as_dict()}
            if took is not None:
                row["measured"] = took[place].times._asdict() | {"agreed": took[place].agreed}
            print(json.dumps(row))
            continue
        extras = found.ledger.extras
        print(terminal.bold(f"{path}: {len(found.boxes)} found, {extras['layers']} layers, {extras['queries']} queries",
                            sys.stdout))  # fmt: skip
        rows = [
            (each["label"], f"{each['score']:.2f}", *(f"{edge:.0f}" for edge in each["box"]))
            for each in found.as_rows()
        ]
        if rows:
            print(terminal.table(("label", "score", "left", "top", "right", "bottom"), rows, sys.stdout))
        if took is not None:
            print(_told(took[place]))
    return 0


def measured(call: Callable[[Picture], object], pictures: Sequence[Picture]) -> list[Settled]:
    """Returns what a call with each of some pictures takes, measured as `outlay vision choose` measures."""
    from outlay.vision.detect.timing import PATIENT, settled, timed_call

    times = settled(range(len(pictures)), lambda place: timed_call(lambda: call(pictures[place])), PATIENT)
    return [times[place] for place in range(len(pictures))]


def _told(took: Settled) -> str:
    seconds, worked, waited = (1e3 * each for each in took.times)
    told = f"{seconds:.1f} ms, {worked:.1f} ms of the processor"
    if waited > seconds / 10:
        told += f"; without {waited:.1f} ms in which other work held it"
    return told + ("" if took.agreed else "; the fastest calls never agreed, the machine is busy")


def lines_of(path: Path) -> list[str]:
    """Returns the lines of a file that hold something. Raises `UsageError` where it can't be read."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from None
