"""`outlay train table`: a table of n-grams, counted in texts and code."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number
from outlay.cli.train.options import corpus_arguments, model_arguments, output, prompts
from outlay.errors import UsageError

if TYPE_CHECKING:
    from outlay.models.tokenizer import Tokenizer


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="texts or code (Python's own library)")
    model_arguments(parser)
    corpus_arguments(parser, 700_000)
    parser.add_argument(
        "--own", action="store_true", help="count text that the model writes, in place of files: for auto"
    )
    parser.add_argument("--order", type=number(2, whole=True), default=3, metavar="N",
                        help="the longest n-grams: 3 for aded, 6 for superposed (%(default)s)")  # fmt: skip
    parser.add_argument("--successors", type=number(1, whole=True), default=12, metavar="N",
                        help="successors of a context that are kept (%(default)s)")  # fmt: skip


def train(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
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
    out = output(args, fitted.own_path("table", lm.model))
    work = out.with_name(f"{out.name}.work")
    corpus = Corpus(work, lm.model, args.seed)
    corpus.grow(lm, args.tokens, prompts(args, lm), progress)
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
