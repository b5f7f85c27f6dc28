"""`outlay train ppd`: prompt tokens, at which the model guesses several tokens ahead."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number
from outlay.cli.train.options import corpus_arguments, load_model_of, model_arguments, output, percent, prompts

if TYPE_CHECKING:
    pass


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    model_arguments(parser)
    corpus_arguments(parser, 60_000)
    for name, default, what in (
        ("m", 3, "prompt tokens: how far ahead it guesses"),
        ("copies", 1, "of each prompt token, whose guesses are averaged"),
        ("steps", 300, "training steps"),
    ):
        parser.add_argument(f"--{name}", type=number(1, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip


def train(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    from outlay.models import fitted
    from outlay.train.prompt_tokens import PromptRecipe, train_prompts

    lm = load_model_of(args)
    out = output(args, fitted.own_path("ppd", lm.model))
    recipe = PromptRecipe(args.m, args.copies, args.steps, seed=args.seed)
    with terminal.Progress(quiet=args.quiet) as progress:
        accuracy = train_prompts(lm, recipe, args.tokens, prompts(args, lm), out, progress)
    print(out)
    rates = [row[0] for row in accuracy.tolist()]
    print("hit rates of guesses 1, 2, ... ahead on held-out texts: " + percent(rates), file=sys.stderr)
    return 0
