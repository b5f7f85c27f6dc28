"""`outlay train crate`: a small CRATE over the bytes of a text, or its twin, a GPT-2 of the same shape."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number
from outlay.errors import UsageError

if TYPE_CHECKING:
    pass


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="what it is trained on; the last "
                        "twentieth is held out")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder that is written")
    for name, default, what in (
        ("steps", 300, "training steps"),
        ("batch", 2048, "bytes of a step"),
        ("layers", 6, "blocks"),
        ("hidden", 256, "width of a token"),
        ("heads", 8, "subspaces, or attention heads"),
        ("positions", 512, "bytes of the longest context"),
    ):
        parser.add_argument(f"--{name}", type=number(1, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip
    parser.add_argument("--lr", type=number(above=0), default=1.5e-3, metavar="R", help="highest rate (%(default)s)")
    parser.add_argument("--twin", action="store_true", help="train the GPT-2 of the same shape in its place")
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def train(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    import torch

    from outlay.prompts import decode
    from outlay.train.crate import CrateRecipe, CrateTraining

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        text = decode(args.text.read_bytes(), str(args.text))
    except OSError as error:
        raise UsageError(f"can't read {args.text}: {error.strerror}") from error
    if args.out.exists():
        raise UsageError(f"{args.out} is there already: remove it to train it anew, or name another folder with --out")
    names = ("layers", "hidden", "heads", "positions", "batch", "steps", "lr", "seed")
    recipe = CrateRecipe(**{name: getattr(args, name) for name in names}, net="gpt2" if args.twin else "crate")
    with terminal.Progress(quiet=args.quiet) as progress:
        bits = CrateTraining(recipe, text, args.out).fit(progress)
    print(args.out)
    print(f"{bits:.3f} bits a byte on the held-out text", file=sys.stderr)
    return 0
