"""`outlay vision`: what networks that see cost, detectors, and layers that adapt to the picture."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number, one_of
from outlay.errors import FailureError, UsageError, nearest

if TYPE_CHECKING:
    from outlay.vision.fdconv import Converted
    from outlay.vision.networks import Network
    from outlay.vision.profiler import Profile

WHAT = {
    "profile": "what networks cost, layer by layer: arithmetic, memory, time, energy",
    "detect": "objects in pictures, in as many layers as there is budget for",
    "train": "detectors trained on pictures with boxes",
    "eval": "how well a detector finds the boxes of labelled pictures",
    "choose": "which detector finds most within a budget, here and on your labels",
    "adapt": "layers of a network replaced by ones that adapt to each picture",
}
DESCRIPTION = "Measures networks that see, and changes their layers."
EXAMPLES = (
    "what can be done:\n"
    + "\n".join(f"  {name:<8} {what}" for name, what in WHAT.items())
    + """

examples:
  outlay vision profile vovnet-39
  outlay vision profile vovnet-27-slim --compare vovnet39a,hgnetv2_b0 --input 3x320x320
  outlay vision profile my_package.models:build --layers 10 --json
  outlay vision detect street.jpg --model deimv2_hgnetv2_n_coco.pth --draw found/
  outlay vision detect photos/*.jpg --model deimv2_hgnetv2_n_coco.pth --budget seconds=0.05 --json
  outlay vision train detect --data cells/ --size atto --minutes 30 --out mine
  outlay vision eval outlay/digits-atto --data digits --layers 2
  outlay vision choose outlay/cells-atto --data cells:test --budget seconds=0.02
  outlay vision adapt vovnet-39 --method fdconv --groups 64 --out vovnet-39-fd --verify

`outlay vision WHAT --help` shows the options.
"""
)
PROFILE_NOTES = """MODEL is one of ours, timm:NAME, package.module:function, or a folder that outlay wrote. Ours:
{designs}

A multiply-add is 2 FLOPs. mem elements is the paper's memory access cost: elements of input, output and weight of
convolutions and matrix products. moved is all that is read and written, what concatenation moves included. of peak is
GFLOP/s over those of a large matrix product here: near it arithmetic takes the time, far below it memory does.
"""

VERIFIED = 1e-3  # of the greatest output: rounding of many layers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay vision WHAT [...]"
    parser.add_argument("what", nargs="?", metavar="WHAT", help=", ".join(WHAT))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Does what is asked for; returns the exit status."""
    from outlay.cli.vision import choose, detect, evaluate, train

    kinds: dict[str, tuple[Callable[[Parser], None], Callable[[Any], int]]] = {
        "profile": (_profile_arguments, _profile),
        "detect": (detect.add_arguments, detect.run),
        "train": (train.add_arguments, train.run),
        "eval": (evaluate.add_arguments, evaluate.run),
        "choose": (choose.add_arguments, choose.run),
        "adapt": (_adapt_arguments, _adapt),
    }
    if args.what is None:
        raise UsageError(f"say what to do: {', '.join(WHAT)}")
    if args.what not in kinds:
        raise UsageError(f"there is no {args.what!r}{nearest(args.what, WHAT)}; there are {', '.join(WHAT)}")
    parser = Parser(prog=f"outlay vision {args.what}", description=f"{WHAT[args.what].capitalize()}.")
    add, do = kinds[args.what]
    add(parser)
    return do(parser.parse_args(args.rest))


def shape(text: str) -> tuple[int, ...]:
    """Returns the channels, height and width in "3x224x224"."""
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if found is None or not all(map(int, found.groups())):
        raise argparse.ArgumentTypeError(f"must be CHANNELSxHEIGHTxWIDTH like 3x224x224, not {text!r}")
    return tuple(map(int, found.groups()))


def _profile_arguments(parser: Parser) -> None:
    import textwrap

    from outlay.vision.networks import NAMED

    listed = textwrap.fill(", ".join(NAMED), 98, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    parser.epilog = PROFILE_NOTES.format(designs=listed)
    parser.add_argument("model", metavar="MODEL", help="the network")
    parser.add_argument("--compare", metavar="A,B", help="more networks, timed in turn with the first")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights for MODEL (random)")
    parser.add_argument("--input", type=shape, default=(3, 224, 224), metavar="CxHxW", help="of an image (3x224x224)")
    parser.add_argument("--batch", type=number(1, whole=True), default=1, metavar="N", help="images at once (1)")
    parser.add_argument("--threads", type=number(1, whole=True), default=1, metavar="N", help="that compute (1)")
    parser.add_argument("--rounds", type=number(1, whole=True), default=7, metavar="N", help="timed calls of each (7)")
    parser.add_argument("--fold", action="store_true", help="fold batch normalisation into the convolutions first")
    parser.add_argument("--layers", type=number(1, whole=True), metavar="N", help="show the N layers that take longest")
    parser.add_argument("--pj-per-flop", type=number(0), metavar="E", help="estimate the energy: pJ a FLOP")
    parser.add_argument("--pj-per-byte", type=number(0), metavar="E", help="and pJ a byte that is moved")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, each layer included")


def _profile(args: argparse.Namespace) -> int:
    import torch

    from outlay.vision.fold import fold
    from outlay.vision.networks import open_network
    from outlay.vision.profiler import EnergyModel, profiles

    if (args.pj_per_flop is None) != (args.pj_per_byte is None):
        raise UsageError("an estimate of the energy needs both --pj-per-flop and --pj-per-byte")
    energy = None if args.pj_per_flop is None else EnergyModel(args.pj_per_flop, args.pj_per_byte)
    specs = [args.model, *filter(None, (args.compare or "").split(","))]
    if len(set(specs)) < len(specs):
        raise UsageError("each network is compared once; one is named twice")
    image = torch.rand(args.batch, *args.input, generator=torch.Generator().manual_seed(0))
    networks: dict[str, tuple[Any, Sequence[Any]]] = {}
    for place, spec in enumerate(specs):
        opened: Network = open_network(spec, args.weights if place == 0 else None)
        networks[spec] = (fold(opened.module, image) if args.fold else opened.module, (image,))
    found = profiles(networks, threads=args.threads, rounds=args.rounds, energy=energy)
    if args.json:
        print(json.dumps([profile.as_dict() for profile in found]))
        return 0
    print(_comparison(found))
    if args.layers:
        for profile in found:
            print(f"\n{terminal.bold(profile.name, sys.stdout)}\n{_layer_table(profile, args.layers)}")
    return 0


def _comparison(found: Sequence[Profile]) -> str:
    """Returns the networks by time, and where the order by FLOPs is another."""
    from outlay.tables import number as digits
    from outlay.tables import table, times
    from outlay.vision.profiler import ranked, slowdown

    order = ranked(found)
    header = ("network", "cpu ms", "ms", "GFLOP", "GFLOP/s", "of peak", "M mem elements", "moved MB", "peak MB",
              "M parameters", "weights MB", "mJ")  # fmt: skip
    rows = [
        (
            profile.name,
            *(digits(value) for value in (
                profile.cpu_seconds * 1e3, profile.seconds * 1e3, profile.cost.total.flops / 1e9,
                profile.flops_per_second / 1e9,
            )),
            f"{profile.share_of_peak:.0%}",
            *(digits(value) for value in (
                profile.cost.total.mem_elements / 1e6, profile.cost.total.moved_bytes / 1e6,
                profile.cost.peak_activation_bytes / 1e6, profile.cost.total.parameters / 1e6,
                profile.cost.total.weight_bytes / 1e6,
            )),
            _energy(profile),
        )
        for profile in order
    ]  # fmt: skip
    lines, least = [table(header, rows)], order[0]
    lines += [f"{other.name} takes {times(slowdown(other, least))} the time of {least.name}" for other in order[1:]]
    by_flops = sorted(order, key=lambda profile: profile.cost.total.flops)
    if by_flops != order:
        lines.append(f"by FLOPs the order would be {', '.join(profile.name for profile in by_flops)}")
    if all(profile.joules is None for profile in found):
        lines.append("energy: unavailable, there is no meter that can be read here (the zeus package: RAPL, NVML)")
    return "\n".join(lines)


def _energy(profile: Profile) -> str:
    if profile.joules is not None:
        return f"{profile.joules * 1e3:.3g}"
    return "-" if profile.est_joules is None else f"{profile.est_joules * 1e3:.3g} est."


def _layer_table(profile: Profile, most: int) -> str:
    from outlay.tables import number as digits
    from outlay.tables import table

    layers = sorted(profile.cost.layers.items(), key=lambda item: -profile.layer_seconds.get(item[0], 0.0))
    rows = [
        (
            f"{name or '(the network itself)'} {profile.cost.kinds[name]}",
            *(digits(value) for value in (
                profile.layer_seconds.get(name, 0.0) * 1e3, amounts.flops / 1e6, amounts.mem_elements / 1e3,
                amounts.moved_bytes / 1e6, amounts.parameters / 1e3,
            )),
        )
        for name, amounts in layers[:most]
    ]  # fmt: skip
    return table(("layer", "cpu ms", "MFLOP", "k mem elements", "moved MB", "k parameters"), rows)


def _adapt_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a network as `outlay vision profile` takes it")
    parser.add_argument("--method", type=one_of(["fdconv"]), default="fdconv", metavar="M", help="fdconv")
    parser.add_argument("--groups", type=number(1, whole=True), default=64, metavar="N", help="frequency groups (64)")
    parser.add_argument("--ksm", type=one_of(["local+global", "global", "gain"]), default="local+global", metavar="K",
                        help="gains on the kernel: local+global, global, gain (local+global)")  # fmt: skip
    parser.add_argument("--no-fbm", action="store_true", help="no gains on frequency bands of the map")
    parser.add_argument("--layers", default="", metavar="REGEX", help="only layers whose names this pattern finds")
    parser.add_argument("--linear", action="store_true", help="linear layers too")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights for MODEL (random)")
    parser.add_argument("--input", type=shape, default=(3, 224, 224), metavar="CxHxW", help="for --verify (3x224x224)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--verify", action="store_true", help="compare the outputs, and read the folder again")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _adapt(args: argparse.Namespace) -> int:
    from torch import nn

    from outlay.vision.fdconv import FDConv, convert_fdconv, paper_layers
    from outlay.vision.networks import Network, open_network, save_folder

    try:
        pattern = re.compile(args.layers)
    except re.error as error:
        raise UsageError(f"--layers must be a regular expression, not {args.layers!r}: {error}") from error
    how = FDConv(args.groups, args.ksm, not args.no_fbm)

    def where(name: str, layer: nn.Module) -> bool:
        fits = paper_layers(name, layer) or (args.linear and isinstance(layer, nn.Linear))
        return fits and pattern.search(name) is not None

    network = open_network(args.model, args.weights)
    if network.adapted:
        raise UsageError(f"{args.model} was adapted already")
    made, report = convert_fdconv(network.module, where, how)
    names = [line.name for line in report if not line.left]
    if not names:
        raise UsageError(f"no layer of {args.model} can be adapted: more than 16 channels on both sides, 1x1 or 3x3")
    adapted = {"fdconv": {"layers": names, "options": asdict(how)}}
    save_folder(args.out, Network(network.spec, made, network.options, adapted))
    checked = _verified(network, made, args) if args.verify else None
    if args.json:
        print(json.dumps({"layers": [asdict(line) for line in report], "difference": checked}))
        return 0
    print(_adapt_report(report, sum(p.numel() for p in network.module.parameters())))
    if checked is not None:
        print(f"outputs differ by {checked:.2g} of the greatest, from the original and read again from {args.out}")
    return 0


def _verified(network: Network, made: Any, args: argparse.Namespace) -> float:
    """Returns the greatest difference of the outputs over the greatest output; the folder's must be the same."""
    import torch
    from torch.utils._pytree import tree_leaves

    from outlay.vision.networks import read_folder

    image = torch.randn(1, *args.input, generator=torch.Generator().manual_seed(0))
    again = read_folder(args.out, network.module if ":" in network.spec else None).module
    with torch.no_grad():
        before, after, read = (tree_leaves(net(image)) for net in (network.module, made, again))
    if not all(torch.equal(one, other) for one, other in zip(after, read, strict=True)):
        raise FailureError(f"{args.out} read again computes something else")
    gaps = [(one - other).abs().max() / one.abs().max() for one, other in zip(before, after, strict=True)]
    worst = float(max(gaps))
    if not worst <= VERIFIED:
        raise FailureError(f"the adapted network differs by {worst:.2g} of the greatest output, more than {VERIFIED:g}")
    return worst


def _adapt_report(report: Sequence[Converted], before: int) -> str:
    from outlay.tables import table

    done = [line for line in report if not line.left]
    rows = [(line.name, f"{line.added:,}", f"{line.added_bytes:,}") for line in done]
    added = sum(line.added for line in done)
    rows.append((f"{len(done)} layers", f"{added:,}", f"{sum(line.added_bytes for line in done):,}"))
    lines = [table(("layer", "added parameters", "added bytes"), rows)]
    lines += [f"{line.name} is left: {line.left}" for line in report if line.left]
    lines.append(f"{before:,} parameters became {before + added:,}, {added / before:.1%} more")
    return "\n".join(lines)
