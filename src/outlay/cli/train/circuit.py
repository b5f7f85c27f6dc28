"""`outlay train circuit`: a circuit of integers: pictures of one size, tables of categories."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number, one_of
from outlay.cli.train.options import output

if TYPE_CHECKING:
    pass

TOLD = 1000  # samples whose bits are told once a circuit is fitted


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    parser.add_argument("data", type=Path, metavar="DATA", help="a .npy file of integers, a folder of pictures of one "
                        "size, or a .csv table of categories")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where it goes, FILE.safetensors")
    for name, default, what in (
        ("latents", 16, "states of each latent"),
        ("epochs", 20, "times that the data are gone through in mini-batches"),
        ("final-epochs", 1, "steps over all data at the end"),
        ("batch", 1000, "samples of a mini-batch"),
    ):
        parser.add_argument(f"--{name}", type=number(0, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip
    parser.add_argument("--categories", type=number(2, whole=True), metavar="K", help="values of a variable (as many "
                        "as the data have; 256 for pictures)")  # fmt: skip
    parser.add_argument("--patches", type=one_of(("rgb", "grey")), metavar="C", help="of a folder of pictures of any "
                        "sizes: a circuit of their patches, rgb or grey, which compresses other pictures")  # fmt: skip
    parser.add_argument("--cpu-seconds", type=number(above=0), metavar="S", help="processor time of fitting, at most")
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def train(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    from math import log

    from outlay.codec.circuit.data import read_data, read_patches
    from outlay.codec.circuit.em import Recipe, fit
    from outlay.codec.circuit.patches import SHADES
    from outlay.lm import set_threads

    set_threads(args.threads)
    out = output(args, args.out)
    recipe = Recipe(
        args.latents, args.epochs, args.final_epochs, args.batch, cpu_seconds=args.cpu_seconds, seed=args.seed
    )
    with terminal.Progress(quiet=args.quiet) as progress:
        progress("reading", 0, 0)
        if args.patches is not None:
            channels, categories = (3 if args.patches == "rgb" else 1), SHADES
            data, left_out = read_patches(args.data, channels, seed=args.seed)
            if left_out and not args.quiet:
                print(f"left out, in grey or not to be read: {', '.join(left_out)}", file=sys.stderr)
            circuit = fit(data, categories, recipe, progress).rounded()
            circuit.save(out, categories=categories, patches=channels)
        else:
            data, categories = read_data(args.data, args.categories)
            circuit = fit(data, categories, recipe, progress)
            circuit.save(out, categories=categories)
        bits = -float(circuit.log_prob(data[:TOLD]).mean()) / log(2) / data.shape[1]
    print(out)
    if not args.quiet:
        print(f"{len(data):,} samples of {data.shape[1]} variables: {bits:.3f} bits each", file=sys.stderr)
    return 0
