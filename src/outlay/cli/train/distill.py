"""`outlay train distill`: a small encoder-decoder, distilled from a decoder-only model on pairs of yours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number, one_of
from outlay.errors import UsageError


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    parser.add_argument("--data", required=True, metavar="FILE",
                        help='JSON lines: "source" and "target"; or problems: retrieval:count=1000')  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder that the student goes to")
    parser.add_argument("--teacher", metavar="M", help="an alias, a folder, a .gguf file or a hub id")
    parser.add_argument("--tokenizer", metavar="M", help="the model whose tokenizer it has, without a teacher")
    parser.add_argument("--dtype", default="auto", metavar="D", help="how the teacher's weights are held (auto)")
    parser.add_argument("--targets", type=one_of(["student", "teacher", "gold"]), default="student", metavar="T",
                        help="whose text is compared on: student, teacher or gold (student)")  # fmt: skip
    parser.add_argument("--alpha", type=number(0, most=1), default=0.9, metavar="A",
                        help="weight of the KL to the teacher; the rest is of the gold target (0.9)")  # fmt: skip
    for name, default, what in (
        ("n-encoder-layer", 20, "encoder blocks"),
        ("n-decoder-layer", 10, "decoder blocks"),
        ("n-embd", 1024, "width of the hidden states"),
        ("qkv-embd", 384, "width of all query heads"),
        ("n-head", 6, "query heads"),
        ("n-kv-head", 3, "heads of keys and values"),
        ("hidden-dim", 4096, "width within an MLP"),
        ("n-enc", 1024, "longest source in tokens; longer ones are cut"),
        ("n-dec", 256, "longest target in tokens"),
        ("batch", 128, "examples of a step"),
        ("micro", 6, "examples of a pass"),
        ("epochs", 128, "times that the pairs are gone through"),
        ("measure-every", 32, "steps between two measurements"),
        ("warmup", 4, "steps over which the learning rate rises"),
    ):
        parser.add_argument(f"--{name}", type=number(1, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip
    for name, share, what in (
        ("lr", 1e-4, "highest learning rate"), ("dropout", 0.1, "share that is dropped"),
        ("init-std", 0.02, "deviation of the weights at the start; 0: by the width of a layer, for narrow students"),
        ("weight-decay", 0.01, "of matrices"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=number(0), default=share, metavar="X", help=f"{what} (%(default)s)")
    parser.add_argument(
        "--count-padding", action="store_true", help="count padding in the KL, as the released code does"
    )
    parser.add_argument("--slice-vocab", action="store_true", help="compare over the tokens of both vocabularies")
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def train(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    from dataclasses import fields

    from outlay.lm import load, set_threads
    from outlay.models.load import load_model
    from outlay.train.distill import Distillation, DistillRecipe, EngineTeacher, read_pairs

    if args.alpha > 0 and args.teacher is None:
        raise UsageError("say which model teaches, --teacher M, or leave it out with --alpha 0 --tokenizer M")
    if args.teacher is None and args.tokenizer is None:
        raise UsageError("without a teacher, say whose tokenizer the student has: --tokenizer M")
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f"{args.out} is a file; name a folder with --out")
    if (args.out / "model.safetensors").exists() and not (args.out / "distill.checkpoint").exists():
        raise UsageError(f"{args.out} holds a model already: remove it to train anew, or name another with --out")
    options = {each.name: getattr(args, each.name) for each in fields(DistillRecipe) if hasattr(args, each.name)}
    recipe = DistillRecipe(**options, mask_pad=not args.count_padding)
    with terminal.Progress(quiet=args.quiet) as progress:
        progress("starting", 0, 0)
        teacher: EngineTeacher | None = None
        vocab: int | None = None
        if args.alpha > 0:
            lm = load(args.teacher, dtype=args.dtype, threads=args.threads, progress=progress)
            teacher, tokenizer = EngineTeacher(lm), lm.model.tokenizer
            vocab = None if recipe.slice_vocab else lm.model.decoder.config.vocab_size
        else:
            set_threads(args.threads)
            tokenizer = load_model(args.tokenizer or args.teacher).tokenizer
        student = Distillation(recipe, read_pairs(args.data, tokenizer), tokenizer, teacher, vocab)
        found = student.fit(args.out, progress)
    print(args.out)
    if found.truncated:
        print(f"{found.truncated} of the pairs were longer and cut", file=sys.stderr)
    print(f"validation loss {found.validation_loss:.4f} after {found.steps} steps", file=sys.stderr)
    return 0
