"""`outlay train codec`: a learned picture codec, for `outlay compress --lossy`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number, one_of
from outlay.errors import UsageError

if TYPE_CHECKING:
    pass


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    from outlay.codec.lic import ARCHITECTURES
    from outlay.train.picture_codec import PictureCodecRecipe

    usual = PictureCodecRecipe()
    parser.add_argument("data", type=Path, metavar="DIR", help="a folder of pictures")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder that is written")
    parser.add_argument("--architecture", type=one_of(ARCHITECTURES), default=usual.architecture, metavar="A",
                        help=f"{', '.join(ARCHITECTURES)} (%(default)s)")  # fmt: skip
    for name, what in (
        ("inner", "channels between the layers"),
        ("latents", "channels of the latents"),
        ("steps", "training steps"),
        ("batch", "crops of a step"),
        ("crop", "pixels a side of a crop"),
    ):
        parser.add_argument(f"--{name}", type=number(1, whole=True), default=getattr(usual, name), metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip
    parser.add_argument("--quality", type=number(above=0), default=usual.quality, metavar="L", help="lambda, the price "
                        "of error in bits: 0.0018 to 0.0483 are usual (%(default)s)")  # fmt: skip
    parser.add_argument(
        "--rate", type=number(above=0), default=usual.rate, metavar="R", help="Adam's step (%(default)s)"
    )
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def train(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    from outlay.cli.codec import read_pictures
    from outlay.lm import set_threads
    from outlay.train.picture_codec import PictureCodecRecipe, train_picture_codec

    set_threads(args.threads)
    recipe = PictureCodecRecipe(
        args.architecture, args.inner, args.latents, args.steps, args.batch, args.crop, args.quality, args.rate,
        args.seed,
    )  # fmt: skip
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f"{args.out} is a file; name a folder with --out")
    with terminal.Progress(quiet=args.quiet) as progress:
        pictures = read_pictures(args.data)
        args.out.mkdir(parents=True, exist_ok=True)
        train_picture_codec(pictures, recipe, progress, args.out / "training.pt").save(args.out)
    print(args.out)
    return 0
