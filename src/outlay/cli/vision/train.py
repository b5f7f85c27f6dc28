"""`outlay vision train`: detectors trained on pictures with boxes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number, one_of
from outlay.cli.vision.evaluate import add_data, table_of
from outlay.errors import UsageError

KINDS = ("detect",)
NOTES = """DATA is a COCO file (.json), a VOC folder, or digits: scenes that are made of digits and photographs.
AP is measured on what is held out: --held, or a VOC folder's val or test, or every tenth picture of a COCO file.

The recipe is the one of the size's authors; its stages are shares of the steps. What was stopped goes on where it was,
to the same weights, when the same command is typed again. {augments}

examples:
  outlay vision train detect --data cells/ --size atto --side 256 --minutes 15 --out cells-atto
  outlay vision train detect --data mine.json --from deimv2_hgnetv2_n_coco.pth --minutes 600 --out mine
  outlay vision train detect --data digits --minutes 10 --out digits-atto
"""


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    from outlay.train.detect.recipe import AUGMENTS, BATCH

    told = "; ".join(f"{name}: {what}" for name, what in AUGMENTS.items())
    parser.epilog = NOTES.format(augments=f"\nWays to change pictures: {told}.")
    parser.add_argument("what", type=one_of(KINDS), metavar="WHAT", help="detect")
    add_data(parser)
    parser.add_argument("--held", metavar="DATA", help="pictures on which AP is measured, and none trained on")
    parser.add_argument("--size", metavar="S", help="atto, femto, pico, n, s, m, l or x (atto; with --from, its own)")
    parser.add_argument("--from", dest="begin", metavar="CHECKPOINT", help="a detector that is trained further")
    parser.add_argument("--minutes", type=number(above=0), metavar="M", help="processor minutes of the training, from "
                        "which the steps are planned")  # fmt: skip
    parser.add_argument("--steps", type=number(1, whole=True), metavar="N", help="steps, in place of --minutes")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder that is written")
    parser.add_argument("--batch", type=number(1, whole=True), metavar="N", help=f"pictures of a step ({BATCH})")
    parser.add_argument("--side", type=number(32, whole=True), metavar="N", help="pixels a side (the size's own)")
    parser.add_argument("--queries", type=number(1, whole=True), metavar="N", help="places that are refined (the "
                        "size's own)")  # fmt: skip
    parser.add_argument("--lr", type=number(above=0), metavar="R", help="the highest learning rate (the size's own, "
                        "times the root of the batch over the published one)")  # fmt: skip
    parser.add_argument("--last", type=number(0, most=1), metavar="X", help="the lowest, as a share (the size's own)")
    parser.add_argument("--backbone", type=number(0), metavar="X", help="the backbone's, as a share (the size's own)")
    parser.add_argument("--augment", type=one_of(tuple(AUGMENTS)), metavar="A", help=f"{', '.join(AUGMENTS)} (recipe)")
    parser.add_argument("--denoising", type=number(0, whole=True), metavar="N", help="noisy queries (100)")
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    from outlay.lm import set_threads
    from outlay.train.detect import Training, recipe_for
    from outlay.vision import detect
    from outlay.vision.detect.datasets import held_out, read_dataset

    if (args.minutes is None) == (args.steps is None):
        raise UsageError("say how long the training is: --minutes M of processor time, or --steps N")
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f"{args.out} is a file; name a folder with --out")
    set_threads(args.threads)
    begin = detect.load(args.begin) if args.begin else None
    size = args.size or (begin.detector.size.name if begin else "atto")
    if begin is not None and detect.size_of(size).name != begin.detector.size.name:
        raise UsageError(f"{args.begin} is of size {begin.detector.size.name}, not {size}")
    side, queries = args.side, args.queries
    if begin is not None:
        side, queries = side or begin.side, queries or begin.detector.size.queries
    recipe = recipe_for(
        args.data, size=size, steps=args.steps, batch=args.batch, side=side, queries=queries, lr=args.lr,
        last=args.last, backbone=args.backbone, augment=args.augment, denoising=args.denoising, seed=args.seed,
    )  # fmt: skip
    if args.held:
        data, held = read_dataset(args.data, args.bad_boxes), read_dataset(args.held, args.bad_boxes)
    else:
        data, held = held_out(args.data, args.bad_boxes)
    for line in (*data.remarks, *held.remarks):
        _tell(line)
    facts = {"command": " ".join(["outlay", *sys.argv[1:]]), "data": data.source}
    training = Training(recipe, data, held, args.out, begin, args.minutes, facts)
    if training.fresh:
        _tell(f"{args.begin} has {begin.detector.size.classes if begin else 0} classes and {data.source} has "
              f"{len(data.names)}; these parts are made anew: {', '.join(training.fresh)}")  # fmt: skip
    with terminal.Progress(quiet=args.quiet) as progress:
        done = training.fit(progress, _tell)
    if args.json:
        told = {"out": str(args.out), "steps": done.steps, "cpu_seconds": round(done.cpu_seconds, 1)}
        print(json.dumps(told | ({} if done.score is None else done.score.as_dict())))
        return 0
    if done.score is not None:
        print(table_of(done.score))
    print(f"{args.out}: {done.steps} steps in {done.cpu_seconds / 60:.1f} processor minutes")
    return 0


def _tell(line: str) -> None:
    print(f"outlay: {line}", file=sys.stderr)
