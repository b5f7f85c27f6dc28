"""`outlay replay`: the logits of a receipt, made again."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from outlay.cli import terminal
from outlay.cli.arguments import number

DESCRIPTION = "Makes the logits of a receipt again, bit for bit, or says at which token the first bit differs."
EXAMPLES = """examples:
  outlay run "Why is the sky blue?" --receipt sky.json
  outlay replay sky.json                              # by the method that wrote it
  outlay replay sky.json --method lookup --threads 2  # by another that writes the same text
  outlay replay sky.json --method forced              # its own tokens, in wide passes
  OUTLAY_ISA=avx2 outlay replay sky.json --beside 15  # another instruction set, in a busy batch
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay replay FILE [options]"
    parser.add_argument("file", type=Path, metavar="FILE", help="a receipt that `outlay run --receipt` wrote")
    parser.add_argument("--model", metavar="M", help="the receipt's model: an alias, a folder, a .gguf file or a hub "
                        "id (the default model)")  # fmt: skip
    parser.add_argument("--method", metavar="NAME[:k=v,...]", help="one that writes the same text (the receipt's own); "
                        "forced: the receipt's own tokens, in wide passes")  # fmt: skip
    parser.add_argument("--draft", metavar="D", help="what drafts, for methods that take one")
    parser.add_argument("--beside", type=number(0, whole=True), default=0, metavar="N",
                        help="other requests that share its passes (0)")  # fmt: skip
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--json", action="store_true", help="the result as a JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Replays; returns the exit status, 1 where a bit differs."""
    from outlay.engine.receipt import Receipt

    receipt = Receipt.read(args.file)
    with terminal.Progress(quiet=args.quiet) as progress:
        progress("starting", 0, 0)
        from outlay import kernels
        from outlay.lm import load
        from outlay.replay import replay

        lm = load(args.model, kv_dtype=receipt.kv_dtype, threads=args.threads, progress=progress)
        progress("replaying", 0, 0)
        found = replay(lm, receipt, method=args.method, draft=args.draft, beside=args.beside)
    how = f"{found.receipt.method}, {kernels.isa()}"
    if args.json:
        names = ("tokens", "method", "writer", "digest")
        row = {name: getattr(found.receipt, name) for name in names} | {"same": found.difference is None}
        if found.difference is not None:
            row |= {"first_difference": found.difference[0], "of": found.difference[1]}
        print(json.dumps(row))
    elif found.difference is None:
        print(
            f"{len(receipt.tokens)} tokens, the same bits: {receipt.digest[:16]} ({how}; written by {receipt.writer})"
        )
    else:
        place, what = found.difference
        fact = "another token is written" if what == "token" else "the logits differ"
        print(f"outlay: at token {place} {fact} ({how}; written by {receipt.writer})", file=sys.stderr)
    return 0 if found.difference is None else 1
