"""`outlay train draft`: a draft head, distilled from text that the model writes itself."""

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
    corpus_arguments(parser, 1_500_000)
    for name, default, what in (
        ("layers", 1, "decoder layers"),
        ("vocabulary", 8192, "tokens that are drafted: those that the model writes most"),
        ("epochs", 3, "times that the text is gone through"),
    ):
        parser.add_argument(f"--{name}", type=number(1, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip


def train(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    from outlay.models import fitted
    from outlay.train.draft_head import DraftHeadRecipe, train_draft_head

    lm = load_model_of(args)
    out = output(args, fitted.own_path("head", lm.model))
    recipe = DraftHeadRecipe(args.layers, args.vocabulary, epochs=args.epochs, seed=args.seed)
    with terminal.Progress(quiet=args.quiet) as progress:
        hits = train_draft_head(lm, recipe, args.tokens, prompts(args, lm), out, progress)
    print(out)
    print("hit rates at depth 1, 2, ... on held-out texts: " + percent(hits.get("steps", [])), file=sys.stderr)
    return 0
