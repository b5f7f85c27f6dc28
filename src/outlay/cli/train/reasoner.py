"""`outlay train reasoner`: outlay/tiny-reasoner and outlay/tiny-verifier, for searches on the problems `chains`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number

if TYPE_CHECKING:
    pass


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the folders of both go")
    for name, default, what in (
        ("steps", 2600, "training steps at most"),
        ("batch", 32, "problems of a step"),
        ("layers", 3, "decoder layers"),
        ("hidden", 128, "width of the hidden states"),
    ):
        parser.add_argument(f"--{name}", type=number(1, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip
    for name, share in (("reasoner", 0.7), ("verifier", 0.98)):
        parser.add_argument(f"--{name}", type=number(0, most=1), default=share, metavar="P",
                            help=f"the share of right steps with which the {name} is kept (%(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def train(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    import torch

    from outlay.train.reasoner import ReasonerRecipe, ReasonerTraining

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    names = ("steps", "batch", "layers", "hidden", "reasoner", "verifier", "seed")
    recipe = ReasonerRecipe(**{name: getattr(args, name) for name in names})
    with terminal.Progress(quiet=args.quiet) as progress:
        reached = ReasonerTraining(recipe, args.out).fit(progress)
    for name, share in reached.items():
        print(args.out / name)
        print(f"right steps of {name} at temperature 0.8 on held-out problems: {share:.0%}", file=sys.stderr)
    return 0
