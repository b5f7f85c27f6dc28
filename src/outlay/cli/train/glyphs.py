"""`outlay train glyphs`: outlay/glyphs and outlay/glyphs-256, small vision-language models in LLaVA's form."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number
from outlay.errors import UsageError


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder that is written")
    parser.add_argument("--tokens", type=int, choices=(64, 256), default=64,
                        help="visual tokens of a picture (%(default)s)")  # fmt: skip
    parser.add_argument("--start", metavar="MODEL", help="a model of 64 tokens to start from")
    for name, default, what in (
        ("steps", 1000, "training steps"),
        ("batch", 48, "scenes of a step, half of each kind"),
        ("hidden", 96, "width of the hidden states"),
        ("layers", 4, "decoder layers"),
        ("tower", 2, "layers of the vision tower"),
    ):
        parser.add_argument(f"--{name}", type=number(1, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")
    parser.add_argument("--threads", type=number(1, whole=True), default=1, metavar="N",
                        help="threads to compute with; other numbers give other bits (%(default)s)")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress")


def train(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    import torch

    from outlay.train.glyphs import KINDS, WEIGHTS, GlyphRecipe, GlyphTraining

    if (args.out / WEIGHTS).exists():
        raise UsageError(f"{args.out} is there already: remove it to train it anew, or name another folder with --out")
    torch.set_num_threads(args.threads)
    names = ("tokens", "steps", "batch", "hidden", "layers", "tower", "seed", "start")
    training = GlyphTraining(GlyphRecipe(**{name: getattr(args, name) for name in names}), args.out)
    with terminal.Progress(quiet=args.quiet) as progress:
        training.fit(progress)
    print(args.out)
    for kind in KINDS:
        for reverse in (False, True):
            exact, found = training.measure(kind, reverse=reverse)
            prior = "reversed prior" if reverse else "prior of the training"
            print(
                f"{kind}, {prior}: exact {exact:.3f}, recall {found.recall:.3f}, CHAIR_i {found.chair_i:.3f}, "
                f"CHAIR_s {found.chair_s:.3f}",
                file=sys.stderr,
            )
    return 0
