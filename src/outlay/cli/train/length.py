"""`outlay train length`: a length predictor, by which budget guidance steers how long a model thinks."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number
from outlay.cli.train.options import load_model_of, model_arguments, output, prompts
from outlay.errors import UsageError

if TYPE_CHECKING:
    from outlay.lm import LM


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    model_arguments(parser)
    parser.add_argument("--traces", metavar="FILE", help='JSON lines with "prompt" and "answer", which has the '
                        "thinking in its tags (what the model writes itself)")  # fmt: skip
    parser.add_argument("--prompts", metavar="FILE", help="prompts for the model to write after (its own)")
    parser.add_argument("--opening", metavar="TEXT", help="what opens the thinking (the model's tag; with --closing "
                        "alone it begins with the answer)")  # fmt: skip
    parser.add_argument("--closing", metavar="TEXT", help="what closes the thinking (the model's tag)")
    for name, default, what in (
        ("texts", 1000, "texts that the model writes"),
        ("max-tokens", 2048, "tokens of such a text at most"),
        ("width", 128, "width of the predictor"),
        ("layers", 2, "encoder layers; 768, 12 and 12 are the paper's"),
        ("heads", 4, "attention heads"),
        ("epochs", 1, "times that the texts are gone through"),
        ("batch", 1, "texts of a step"),
        ("longest", 8192, "tokens of a text that are read"),
    ):
        least = 0 if name == "layers" else 1
        parser.add_argument(f"--{name}", type=number(least, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip
    parser.add_argument("--temperature", type=number(0), default=1.0, metavar="T", help="of its texts (1)")
    parser.add_argument("--lr", type=number(0), metavar="R", help="learning rate (1e-4 * 768 / width)")
    parser.add_argument("--no-short-copies", action="store_true",
                        help="don't learn from each text again with its answer in place of its thinking")  # fmt: skip
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")


def train(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    from outlay.models import fitted
    from outlay.train.thinking_length import LengthRecipe, train_length
    from outlay.train.thinking_texts import Writing, given_thoughts, own_thoughts, thinking_tags

    lm = load_model_of(args)
    out = output(args, fitted.own_path("length", lm.model))
    tags = thinking_tags(lm.model, args.opening, args.closing)
    recipe = LengthRecipe(
        args.width, args.layers, args.heads, args.epochs, args.batch, args.lr, longest=args.longest,
        short_copies=not args.no_short_copies, seed=args.seed,
    )  # fmt: skip
    with terminal.Progress(quiet=args.quiet) as progress:
        if args.traces is not None:
            texts = given_thoughts(lm, tags, traces(args.traces, lm))
        else:
            writing = Writing(args.texts, args.max_tokens, args.temperature, args.seed)
            kept = out.with_name(f"{out.name}.work") / "texts.jsonl"
            texts = own_thoughts(lm, tags, writing, prompts(args, lm), kept, progress)
        found = train_length(lm, recipe, tags, texts, out, progress)
    print(out)
    errors = ", ".join(f"{tokens:g} over the last {percent} %" for percent, tokens in found.errors.items())
    print(f"rank correlation with the true remaining length on held-out texts: {found.correlation:.2f}; "
          f"mean error in tokens, the largest tenth left out: {errors}", file=sys.stderr)  # fmt: skip
    return 0


def traces(source: str, lm: LM) -> list[tuple[list[int], str]]:
    """Returns the prompts of a file as token ids, each with its answer. Raises `UsageError` where one has none."""
    from outlay.compare.items import read_items

    items, _ = read_items(source)
    bare = next((place for place, item in enumerate(items, 1) if not item.answer), None)
    if bare is not None:
        raise UsageError(f'text {bare} of {source} needs an "answer", with the thinking in its tags')
    return [(lm.encode(item.prompt, **item.encoding), item.answer or "") for item in items]
