"""What several kinds of training ask of their user: a model, its own text, where the result goes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number
from outlay.errors import UsageError

if TYPE_CHECKING:
    from outlay.lm import LM


def model_arguments(parser: Parser) -> None:
    """Adds the options of what is trained for a model."""
    parser.add_argument("--model", metavar="M", help="an alias, a folder, a .gguf file or a hub id")
    parser.add_argument("--dtype", default="auto", metavar="D", help="how the weights are held (auto)")
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where it goes (where methods find it by themselves)")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def corpus_arguments(parser: Parser, tokens: int) -> None:
    """Adds the options of a model's own text; `tokens` is the usual length."""
    parser.add_argument("--prompts", metavar="FILE", help="prompts for the model to write after (its own)")
    parser.add_argument("--tokens", type=number(1, whole=True), default=tokens, metavar="N",
                        help="tokens of its own text to train on (%(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")


def load_model_of(args: argparse.Namespace) -> LM:
    """Returns the model that is trained for."""
    from outlay.lm import load

    with terminal.Progress(quiet=args.quiet) as progress:
        progress("starting", 0, 0)
        return load(args.model, dtype=args.dtype, threads=args.threads, progress=progress)


def output(args: argparse.Namespace, own: Path) -> Path:
    """Returns the path of the file to write. Raises `UsageError` where none can be, or one is there already."""
    out: Path = args.out or own
    if out.is_dir():
        raise UsageError(f"{out} is a folder; name a file in it")
    if out.exists():
        raise UsageError(f"{out} is there already: remove it to train it anew, or name another file with --out")
    if any(parent.exists() and not parent.is_dir() for parent in out.parents):
        raise UsageError(f"{out} can't be a file: a part of its path is one")
    return out


def prompts(args: argparse.Namespace, lm: LM) -> list[list[int]] | None:
    """Returns the prompts to write after, as tokens; None where the model asks itself."""
    if args.prompts is None:
        return None
    from outlay.compare.items import read_items

    items, _ = read_items(args.prompts)
    return [lm.encode(item.prompt, **item.encoding) for item in items]


def percent(rates: list[float]) -> str:
    """Returns acceptance rates in words."""
    return " ".join(f"{rate:.0%}" for rate in rates) or "not known, they are too short"
