"""`outlay train nm`: a model whose weights keep N of every M, such as 2:4."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number, one_of
from outlay.cli.train.options import corpus_arguments, load_model_of, prompts
from outlay.errors import UsageError

if TYPE_CHECKING:
    pass


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    from outlay.shrink.nm.language_model import SparseModelRecipe
    from outlay.shrink.nm.schedule import RECIPES, NMSparse

    usual, sparse = SparseModelRecipe(), NMSparse()
    parser.add_argument("--model", metavar="M", help="an alias, a folder, a .gguf file or a hub id")
    parser.add_argument("--pattern", default="2:4", metavar="N:M", help="what is kept of each group (%(default)s)")
    parser.add_argument("--recipe", default=sparse.recipe, metavar="R", help=f"{', '.join(RECIPES)}, or stages like "
                        "15:16@0,4:16@0.3,1:16@0.6 (%(default)s)")  # fmt: skip
    parser.add_argument("--where", default=sparse.where, metavar="W", help="ff, q, k, v, qk, qkv, all, or a pattern of "
                        "layers' names (%(default)s)")  # fmt: skip
    parser.add_argument("--backward", type=one_of(["ste", "scaled"]), default=sparse.backward, metavar="B",
                        help="gradient of pruned weights while the mask decays: ste, scaled (%(default)s)")  # fmt: skip
    for name, share, what in (
        ("dense-frac", sparse.dense_frac, "that train dense at first"),
        ("finetune-frac", sparse.finetune_frac, "that train with the final mask at last"),
    ):
        parser.add_argument(f"--{name}", type=number(0, most=1), default=share, metavar="P",
                            help=f"share of the steps {what} (%(default)s)")  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="FILE", help="text to train on (what the model writes itself)")
    corpus_arguments(parser, 300_000)
    for name, default, what in (
        ("steps", usual.steps, "training steps"),
        ("batch", usual.batch, "passages of a step"),
        ("context", usual.context, "tokens of a passage"),
        ("measure", usual.measure, "steps between measurements, at which a checkpoint is kept"),
    ):
        parser.add_argument(f"--{name}", type=number(1, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip
    parser.add_argument("--lr", type=number(above=0), default=usual.lr, metavar="R",
                        help="highest learning rate (%(default)s)")  # fmt: skip
    parser.add_argument(
        "--dtype", default="float32", metavar="D", help="how the model is held that writes text (%(default)s)"
    )
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the sparse model")
    parser.add_argument("--packed", action="store_true", help="store values and places, which outlay reads, in place "
                        "of zeros, which all programs do")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress")


def train(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    from outlay.prompts import decode
    from outlay.shrink.nm.language_model import SparseModelRecipe, train_sparse
    from outlay.shrink.nm.pattern import Pattern
    from outlay.shrink.nm.schedule import NMSparse
    from outlay.tables import table

    pattern = Pattern.parse(args.pattern)
    sparse = NMSparse(
        pattern.n, pattern.m, args.where, args.recipe, dense_frac=args.dense_frac, finetune_frac=args.finetune_frac,
        backward=args.backward,
    )  # fmt: skip
    recipe = SparseModelRecipe(
        sparse, args.steps, args.batch, args.context, args.lr, measure=args.measure, seed=args.seed
    )
    if args.out.exists():
        raise UsageError(f"{args.out} is there already: remove it to train it anew, or name another with --out")
    text = None
    if args.data is not None:
        try:
            text = decode(args.data.read_bytes(), str(args.data))
        except OSError as error:
            raise UsageError(f"can't read {args.data}: {error.strerror}") from error
    lm = load_model_of(args)
    with terminal.Progress(quiet=args.quiet) as progress:
        trained = train_sparse(lm, recipe, text, args.tokens, prompts(args, lm), args.out, progress, packed=args.packed)
    print(args.out)
    rows = [(f"{row.step:,}", f"{row.beta:.3g}", f"{row.binary:.4f}", f"{row.decayed:.4f}") for row in trained.history]
    print(table(("steps", "mask", "binary mask", "decayed mask"), rows), file=sys.stderr)
    won = "" if trained.won_back is None else f"; training won back {trained.won_back:.0%} of the pruning's loss"
    print(f"nats a token on held-out text; dense: {trained.dense:.4f}{won}", file=sys.stderr)
    return 0
