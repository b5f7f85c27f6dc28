"""`outlay codec`: the channels of a learned picture codec, ranked, ordered, and predicted from each other."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number, one_of
from outlay.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from outlay.codec.lic import ISCS

WHAT = {
    "rank": "the importance of each latent channel, from the weights alone",
    "reorder": "the same codec with its channels in the order of their importance, in slices that decode alone",
    "fit": "auxiliary channels predicted from their cores: fewer bytes, the same pictures",
}
DESCRIPTION = "Orders the channels of a learned picture codec (ISCS), for `outlay compress --lossy`."
EXAMPLES = (
    "what can be done:\n"
    + "\n".join(f"  {name:<8} {what}" for name, what in WHAT.items())
    + """

CKPT is a state dict of CompressAI (bmshj2018-factorized, bmshj2018-hyperprior, mbt2018-mean), or a folder that
`outlay train codec` or this command wrote.

examples:
  outlay codec rank hyperprior.pth.tar --score prior
  outlay codec reorder hyperprior.pth.tar --score prior --slices 4 --out ordered/
  outlay codec fit ordered/ --data photos/ --out fitted/
  outlay compress photo.png --lossy fitted/ --channels 0.75
"""
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay codec WHAT CKPT [...]"
    parser.add_argument("what", nargs="?", metavar="WHAT", help=", ".join(WHAT))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Does what is asked for; returns the exit status."""
    kinds: dict[str, tuple[Callable[[Parser], None], Callable[[Any], int]]] = {
        "rank": (_rank_arguments, _rank),
        "reorder": (_reorder_arguments, _reorder),
        "fit": (_fit_arguments, _fit),
    }
    if args.what is None:
        raise UsageError(f"say what to do: {', '.join(WHAT)}")
    if args.what not in kinds:
        raise UsageError(f"there is no {args.what!r}{nearest(args.what, WHAT)}; there are {', '.join(WHAT)}")
    parser = Parser(prog=f"outlay codec {args.what}", description=f"Gives {WHAT[args.what]}.")
    add, do = kinds[args.what]
    parser.add_argument("codec", metavar="CKPT", help="the codec")
    add(parser)
    return do(parser.parse_args(args.rest))


def _rank_arguments(parser: Parser) -> None:
    from outlay.codec.lic.iscs import ORDERS, SCORES

    parser.add_argument("--score", type=one_of(SCORES), default="weights", metavar="S",
                        help=f"what ranks channels: {', '.join(SCORES)} (weights)")  # fmt: skip
    parser.add_argument("--cores", type=number(above=0), metavar="N", help="how many are cores, or a share below 1 of "
                        "the summed importance (a quarter of the channels)")  # fmt: skip
    parser.add_argument("--slices", type=number(1, whole=True), default=1, metavar="P", help="parts that decode alone")
    parser.add_argument("--order", type=one_of(ORDERS), default="progressive", metavar="O",
                        help="progressive: cores first; interleaved: each core before its auxiliaries")  # fmt: skip
    parser.add_argument("--bias-weight", type=number(), default=0.5, metavar="W", help="of biases in the score weights")
    parser.add_argument("--data", type=Path, metavar="DIR", help="pictures, for the score ablation")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def _reorder_arguments(parser: Parser) -> None:
    _rank_arguments(parser)
    parser.set_defaults(slices=4)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder that is written")


def _fit_arguments(parser: Parser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="pictures to fit to")
    parser.add_argument("--steps", type=number(1, whole=True), default=300, metavar="N", help="for each channel (300)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder that is written")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def _rank(args: argparse.Namespace) -> int:
    from outlay.codec.lic import channel_scores, load

    codec, options = load(args.codec), _options(args)
    pictures = read_pictures(args.data) if args.data else []
    scores = channel_scores(
        codec.codec, options.score, bias_weight=options.bias_weight, pictures=[codec.padded(each) for each in pictures]
    )
    layout = codec.reordered(options, pictures).layout
    rows = []
    for place, channel in enumerate(layout.channels):
        core = layout.core_of[place]
        what = "inactive" if core < 0 else "core" if core == place else f"of {layout.channels[core]}"
        rows.append((channel, float(scores[channel]), what, layout.slice_of[place]))
    if args.json:
        print(json.dumps([dict(zip(("channel", "score", "role", "slice"), row, strict=True)) for row in rows]))
        return 0
    shown = [(str(channel), f"{score:.4g}", what, str(part)) for channel, score, what, part in rows]
    print(terminal.table(("channel", f"score: {options.score}", "role", "slice"), shown, sys.stdout))
    return 0


def _reorder(args: argparse.Namespace) -> int:
    from outlay.codec.lic import load

    _refuse_existing(args.out, args.codec)
    ordered = load(args.codec).reordered(_options(args), read_pictures(args.data) if args.data else [])
    ordered.save(args.out)
    layout = ordered.layout
    cores = sum(core == place for place, core in enumerate(layout.core_of))
    told = {"out": str(args.out), "channels": len(layout.channels), "cores": cores, "slices": layout.slices}
    print(json.dumps(told) if args.json else args.out)
    if not args.json:
        print(f"{told['channels']} channels, {cores} of them cores, in {layout.slices} slices", file=sys.stderr)
    return 0


def _fit(args: argparse.Namespace) -> int:
    from outlay.codec.lic import load

    _refuse_existing(args.out, args.codec)
    codec = load(args.codec)
    pictures = read_pictures(args.data)
    fitted = codec.fitted(pictures, args.steps)
    fitted.save(args.out)
    assert fitted.conditional is not None
    used = int(fitted.conditional.used.sum())
    told = {"out": str(args.out), "pictures": len(pictures), "predicted": used}
    print(json.dumps(told) if args.json else args.out)
    if not args.json:
        print(f"{used} of {len(codec.layout.channels)} channels are predicted from their cores", file=sys.stderr)
    return 0


def read_pictures(folder: Path) -> list[Tensor]:
    """Returns the pictures of a folder, or one file, float32 [3, height, width] in 0..1.

    Raises:
        UsageError: Where there are none, or one can't be read.
    """
    import torch

    from outlay.pictures import pictures_in, read_picture

    found = [torch.from_numpy(read_picture(path)) for path in pictures_in(folder)]
    return [picture.permute(2, 0, 1).float() / 255 for picture in found]


def _options(args: argparse.Namespace) -> ISCS:
    from outlay.codec.lic import ISCS

    cores = args.cores if args.cores is None or args.cores < 1 else int(args.cores)
    return ISCS(args.score, cores, args.slices, args.order, args.bias_weight)


def _refuse_existing(out: Path, codec: str) -> None:
    if out.exists() and out.resolve() == Path(codec).resolve():
        raise UsageError(f"{out} is the codec itself; name another folder with --out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder with --out")
