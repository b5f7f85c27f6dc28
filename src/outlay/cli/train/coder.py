"""`outlay train coder`: outlay/tiny-coder, which writes the programs of the problems `minilist`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the model goes")
    for name, default, what in (
        ("steps", 1600, "training steps"),
        ("batch", 64, "problems of a step"),
        ("layers", 3, "decoder layers"),
        ("hidden", 128, "width of the hidden states"),
    ):
        parser.add_argument(f"--{name}", type=number(1, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def train(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    import torch

    from outlay.train.coder import CoderRecipe, CoderTraining

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    recipe = CoderRecipe(**{name: getattr(args, name) for name in ("steps", "batch", "layers", "hidden", "seed")})
    with terminal.Progress(quiet=args.quiet) as progress:
        held_out = CoderTraining(recipe, args.out).fit(progress)
    print(args.out)
    print(f"cross-entropy of a token of a held-out program: {held_out:.3f} nats", file=sys.stderr)
    return 0
