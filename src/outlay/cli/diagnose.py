"""`outlay diagnose`: what each layer of a network does to its tokens."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.cli import terminal
from outlay.cli.arguments import number
from outlay.cli.vision import shape
from outlay.errors import UsageError

if TYPE_CHECKING:
    from outlay.vision.crate import LayerRates

DESCRIPTION = "Measures what each layer of a network does to its tokens: coding rate, rate reduction, sparsity."
EXAMPLES = """With --text, MODEL is a language model as `outlay run --model` takes it. With --images it is a network as
`outlay vision profile` takes it: crate-tiny, timm:NAME, package.module:function, a folder.

R is the coding rate of the tokens that a layer reads, R^c that of what its heads read of them (values, in a language
model), each token at unit length; R - R^c is the rate reduction, in nats. nonzero is the share of a layer's outputs
that are not 0.

examples:
  outlay diagnose outlay/tiny-crate --text book.txt
  outlay diagnose smollm2-135m --text book.txt --passages 4 --length 128 --json
  outlay diagnose crate-small --weights crate_small.pth --images photographs
  outlay diagnose timm:vit_tiny_patch16_224 --images photographs --heads 'blocks.*.attn.qkv=3/v'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("model", metavar="MODEL", help="a language model, or a network that sees")
    parser.add_argument("--text", type=Path, metavar="FILE", help="a text, for a language model")
    parser.add_argument("--passages", type=number(1, whole=True), default=8, metavar="N", help="of the text (8)")
    parser.add_argument("--length", type=number(2, whole=True), default=256, metavar="N", help="tokens of each (256)")
    parser.add_argument("--dtype", default="auto", metavar="D", help="how a language model's weights are held (auto)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures, for a network that sees")
    parser.add_argument("--most", type=number(1, whole=True), default=64, metavar="N", help="pictures at most (64)")
    parser.add_argument("--input", type=shape, metavar="CxHxW", help="of a picture (as CRATE reads it, else 3x224x224)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of a network that sees")
    parser.add_argument("--heads", metavar="PATTERN=N", help="layers that write N heads, N/v: of q, k and v")
    parser.add_argument("--eps2", type=number(above=0), default=0.01, metavar="E", help="squared error of R (0.01)")
    parser.add_argument("--json", action="store_true", help="print the layers as JSON")


def run(args: argparse.Namespace) -> int:
    """Measures the layers; returns the exit status."""
    if (args.text is None) == (args.images is None):
        raise UsageError("say what the network reads: --text FILE for a language model, or --images DIR")
    found = _of_text(args) if args.text is not None else _of_images(args)
    print(json.dumps([layer.as_dict() for layer in found]) if args.json else _table(found))
    return 0


def _of_text(args: argparse.Namespace) -> list[LayerRates]:
    from outlay.models.load import load_model
    from outlay.prompts import decode
    from outlay.vision.crate import diagnose_decoder
    from outlay.vision.crate.diagnostics import passages

    if args.heads or args.weights or args.input:
        raise UsageError("--heads, --weights and --input are for networks that read --images")
    try:
        text = decode(args.text.read_bytes(), str(args.text))
    except OSError as error:
        raise UsageError(f"can't read {args.text}: {error.strerror}") from error
    with terminal.Progress() as progress:
        model = load_model(args.model, dtype=args.dtype, progress=progress)
    tokens = model.tokenizer.encode(text)
    if len(tokens) < 2:
        raise UsageError(f"{args.text} has {len(tokens)} tokens; a coding rate needs 2 or more")
    length = min(args.length, model.decoder.config.max_positions)
    return diagnose_decoder(model.decoder, passages(tokens, length, args.passages), args.eps2)


def _of_images(args: argparse.Namespace) -> list[LayerRates]:
    from outlay.vision.crate import CrateClassifier, CrateMAE, diagnose
    from outlay.vision.crate.diagnostics import parse_heads
    from outlay.vision.networks import open_network
    from outlay.vision.pictures import read_folder

    heads = None if args.heads is None else parse_heads(args.heads)
    network = open_network(args.model, args.weights).module
    shape = (3, 224, 224)
    if isinstance(network, CrateClassifier | CrateMAE):
        shape = (network.channels, *network.sides)
    channels, *sides = args.input or shape
    return diagnose(network, read_folder(args.images, channels, (sides[0], sides[1]), args.most), heads, args.eps2)


def _table(found: Sequence[LayerRates]) -> str:
    from outlay.tables import table

    header = ("layer", "R", "R^c", "of inputs +-", "R - R^c", "nonzero")
    rows = [
        (each.layer, f"{each.rate:.1f}", f"{each.coding_rate:.1f}", f"{each.spread:.1f}", f"{each.reduction:.1f}",
         f"{each.nonzero:.0%}")
        for each in found
    ]  # fmt: skip
    first, last = found[0], found[-1]
    share = last.coding_rate / first.coding_rate
    return f"{table(header, rows)}\nR^c of {last.layer} is {share:.2f} times that of {first.layer}"
