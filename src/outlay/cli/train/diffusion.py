"""`outlay train diffusion`: a small masked-diffusion model of texts, prompts with answers, or generated problems."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number
from outlay.errors import UsageError


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    parser.add_argument("--data", required=True, metavar="FILE", help='JSON lines with "prompt" and "answer", any '
                        "other file of text, or a set of problems: lists, ambiguous, noisy, ...")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the model")
    for name, default, what in (
        ("steps", 3000, "training steps"),
        ("batch", 64, "texts of a step"),
        ("layers", 3, "decoder layers"),
        ("hidden", 64, "width of the hidden states"),
        ("heads", 4, "attention heads"),
        ("inner", 192, "width within an MLP"),
    ):
        parser.add_argument(f"--{name}", type=number(1, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip
    parser.add_argument("--lr", type=number(above=0), default=3e-3, metavar="X", help="the highest learning rate "
                        "(%(default)s)")  # fmt: skip
    parser.add_argument("--context", type=number(1, whole=True), default=0, metavar="N", help="tokens of the longest "
                        "text (as many as prompts with answers need; 256 for text)")  # fmt: skip
    parser.add_argument("--vocabulary", type=number(300, whole=True), default=0, metavar="N", help="tokens of a "
                        "vocabulary that is fitted to the file (bytes)")  # fmt: skip
    parser.add_argument("--bfloat16", action="store_true", help="compute products in bfloat16, where the processor "
                        "does so faster")  # fmt: skip
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")
    parser.add_argument("--threads", type=number(1, whole=True), default=1, metavar="N", help="threads to compute "
                        "with; another number may give other weights (1)")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress")


def train(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    from outlay.lm import set_threads
    from outlay.train.diffusion import DiffusionRecipe, DiffusionTraining
    from outlay.train.masked_data import read_masked_data

    set_threads(args.threads)
    if (args.out / "config.json").exists():
        raise UsageError(f"{args.out} holds a model already: remove it to train it anew, or name another folder")
    names = (
        "data", "context", "vocabulary", "layers", "hidden", "heads", "inner", "batch", "steps", "lr", "bfloat16",
        "seed",
    )  # fmt: skip
    recipe = DiffusionRecipe(**{name: getattr(args, name) for name in names})
    with terminal.Progress(quiet=args.quiet) as progress:
        progress("reading", 0, 0)
        data = read_masked_data(recipe.data, recipe.context, recipe.vocabulary)
        bound = DiffusionTraining(recipe, data, args.out).fit(progress)
    print(args.out)
    if bound is not None:
        print(f"at most {bound:.3f} nats a token of texts that were kept apart", file=sys.stderr)
    return 0
