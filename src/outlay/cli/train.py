"""`outlay train`: makes a draft head, prompt tokens or a table of n-grams for a model."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number
from outlay.errors import UsageError, nearest

if TYPE_CHECKING:
    from outlay.lm import LM
    from outlay.models.tokenizer import Tokenizer

WHAT = {
    "draft": "a draft head, distilled from text that the model writes itself",
    "ppd": "prompt tokens, at which the model guesses several tokens ahead",
    "table": "a table of n-grams, counted in texts and code",
}
DESCRIPTION = "Trains drafters for a model; methods find them by themselves."
EXAMPLES = (
    "what can be trained:\n"
    + "\n".join(f"  {name:<6} {what}" for name, what in WHAT.items())
    + """

examples:
  outlay train draft                                  # on what the default model writes, an hour or two
  outlay train draft --tokens 200000 --layers 2 --out draft.safetensors
  outlay train ppd --m 3 --steps 300
  outlay train table --own                            # of what the default model writes, for auto
  outlay train table --out python.tri ~/project/*.py
  outlay run "..." --method aded:table=python.tri

What was stopped goes on where it was when the same command is typed again.
"""
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay train WHAT [...]"
    parser.add_argument("what", nargs="?", metavar="WHAT", help="draft, ppd or table")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Trains what is asked for; returns the exit status."""
    kinds: dict[str, tuple[Callable[[Parser], None], Callable[[Any], int]]] = {
        "draft": (_draft_arguments, _draft),
        "ppd": (_ppd_arguments, _ppd),
        "table": (_table_arguments, _table),
    }
    if args.what is None:
        raise UsageError(f"say what to train: {', '.join(WHAT)}")
    if args.what not in kinds:
        raise UsageError(f"there is no {args.what!r} to train{nearest(args.what, WHAT)}; there are {', '.join(WHAT)}")
    parser = Parser(prog=f"outlay train {args.what}", description=f"Makes {WHAT[args.what]}.")
    add, train = kinds[args.what]
    add(parser)
    return train(parser.parse_args(args.rest))


def _model_arguments(parser: Parser) -> None:
    parser.add_argument("--model", metavar="M", help="an alias, a folder, a .gguf file or a hub id")
    parser.add_argument("--dtype", default="auto", metavar="D", help="how the weights are held (auto)")
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where it goes (where methods find it by themselves)")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _corpus_arguments(parser: Parser, tokens: int) -> None:
    parser.add_argument("--prompts", metavar="FILE", help="prompts for the model to write after (its own)")
    parser.add_argument("--tokens", type=number(1, whole=True), default=tokens, metavar="N",
                        help="tokens of its own text to train on (%(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")


def _draft_arguments(parser: Parser) -> None:
    _model_arguments(parser)
    _corpus_arguments(parser, 1_500_000)
    for name, default, what in (
        ("layers", 1, "decoder layers"),
        ("vocabulary", 8192, "tokens that are drafted: those that the model writes most"),
        ("epochs", 3, "times that the text is gone through"),
    ):
        parser.add_argument(f"--{name}", type=number(1, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip


def _ppd_arguments(parser: Parser) -> None:
    _model_arguments(parser)
    _corpus_arguments(parser, 60_000)
    for name, default, what in (
        ("m", 3, "prompt tokens: how far ahead it guesses"),
        ("copies", 1, "of each prompt token, whose guesses are averaged"),
        ("steps", 300, "training steps"),
    ):
        parser.add_argument(f"--{name}", type=number(1, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip


def _table_arguments(parser: Parser) -> None:
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="texts or code (Python's own library)")
    _model_arguments(parser)
    _corpus_arguments(parser, 700_000)
    parser.add_argument(
        "--own", action="store_true", help="count text that the model writes, in place of files: for auto"
    )
    parser.add_argument("--order", type=number(2, whole=True), default=3, metavar="N",
                        help="the longest n-grams: 3 for aded, 6 for superposed (%(default)s)")  # fmt: skip
    parser.add_argument("--successors", type=number(1, whole=True), default=12, metavar="N",
                        help="successors of a context that are kept (%(default)s)")  # fmt: skip


def _draft(args: argparse.Namespace) -> int:
    from outlay.models import fitted
    from outlay.train.draft_head import DraftHeadRecipe, train_draft_head

    lm = _load(args)
    out = _out(args, fitted.own_path("head", lm.model))
    recipe = DraftHeadRecipe(args.layers, args.vocabulary, epochs=args.epochs, seed=args.seed)
    with terminal.Progress(quiet=args.quiet) as progress:
        hits = train_draft_head(lm, recipe, args.tokens, _prompts(args, lm), out, progress)
    print(out)
    print("hit rates at depth 1, 2, ... on held-out texts: " + _percent(hits.get("steps", [])), file=sys.stderr)
    return 0


def _ppd(args: argparse.Namespace) -> int:
    from outlay.models import fitted
    from outlay.train.prompt_tokens import PromptRecipe, train_prompts

    lm = _load(args)
    out = _out(args, fitted.own_path("ppd", lm.model))
    recipe = PromptRecipe(args.m, args.copies, args.steps, seed=args.seed)
    with terminal.Progress(quiet=args.quiet) as progress:
        accuracy = train_prompts(lm, recipe, args.tokens, _prompts(args, lm), out, progress)
    print(out)
    rates = [row[0] for row in accuracy.tolist()]
    print("hit rates of guesses 1, 2, ... ahead on held-out texts: " + _percent(rates), file=sys.stderr)
    return 0


def _table(args: argparse.Namespace) -> int:
    from outlay.lm import DEFAULT_MODEL
    from outlay.models.load import load_model
    from outlay.speculation.ngrams import NgramTable, tokenizer_fingerprint

    if args.own and args.files:
        raise UsageError("give files or --own, not both")
    if args.out is None and not args.own:
        raise UsageError("say where the table goes: --out FILE")
    lengths = (2,) if args.order == 3 and not args.own else tuple(range(1, args.order))
    with terminal.Progress(quiet=args.quiet) as progress:
        if args.own:
            return _own_table(args, lengths, progress)
        tokenizer = load_model(args.model or DEFAULT_MODEL).tokenizer
        documents = _documents(args.files, tokenizer, progress)
        progress("counting", 0, 0)
        table = NgramTable.build(
            documents, tokenizer_fingerprint(tokenizer), lengths=lengths, successors=args.successors
        )
        table.save(args.out)
    if not len(table):
        print("outlay: there is no n-gram in these files; the table is empty", file=sys.stderr)
    print(args.out)
    return 0


def _own_table(args: argparse.Namespace, lengths: Sequence[int], progress: terminal.Progress) -> int:
    """Makes a table of text that a model writes; the text is kept beside the table until it is there."""
    from outlay.lm import load
    from outlay.models import fitted
    from outlay.speculation.ngrams import NgramTable, tokenizer_fingerprint
    from outlay.train.corpus import Corpus

    lm = load(args.model, dtype=args.dtype, threads=args.threads, progress=progress)
    out = _out(args, fitted.own_path("table", lm.model))
    work = out.with_name(f"{out.name}.work")
    corpus = Corpus(work, lm.model, args.seed)
    corpus.grow(lm, args.tokens, _prompts(args, lm), progress)
    documents = (passage.tokens[passage.begin :].tolist() for passage in corpus.passages())
    NgramTable.build(
        documents, tokenizer_fingerprint(lm.model.tokenizer), lengths=lengths, successors=args.successors
    ).save(out)
    shutil.rmtree(work)
    print(out)
    return 0


def _documents(files: Sequence[Path], tokenizer: Tokenizer, progress: terminal.Progress) -> list[list[int]]:
    from outlay.prompts import decode
    from outlay.python_sources import library_files

    documents = []
    files = files or library_files()
    for done, path in enumerate(files):
        progress("reading", done, len(files))
        try:
            text = decode(path.read_bytes(), str(path))
        except OSError as error:
            raise UsageError(f"can't read {path}: {error.strerror}") from error
        documents.append(tokenizer.encode(text))
    return documents


def _load(args: argparse.Namespace) -> LM:
    from outlay.lm import load

    with terminal.Progress(quiet=args.quiet) as progress:
        progress("starting", 0, 0)
        return load(args.model, dtype=args.dtype, threads=args.threads, progress=progress)


def _out(args: argparse.Namespace, own: Path) -> Path:
    """Returns the path of the file to write. Raises `UsageError` where none can be, or one is there already."""
    out: Path = args.out or own
    if out.is_dir():
        raise UsageError(f"{out} is a folder; name a file in it")
    if out.exists():
        raise UsageError(f"{out} is there already: remove it to train it anew, or name another file with --out")
    if any(parent.exists() and not parent.is_dir() for parent in out.parents):
        raise UsageError(f"{out} can't be a file: a part of its path is one")
    return out


def _prompts(args: argparse.Namespace, lm: LM) -> list[list[int]] | None:
    if args.prompts is None:
        return None
    from outlay.compare.items import read_items

    items, _ = read_items(args.prompts)
    return [lm.encode(item.prompt, **item.encoding) for item in items]


def _percent(rates: list[float]) -> str:
    return " ".join(f"{rate:.0%}" for rate in rates) or "not known, they are too short"
