"""`outlay vision`: what networks that see cost, and layers that adapt to the picture."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number
from outlay.errors import UsageError, nearest

if TYPE_CHECKING:
    from outlay.vision.networks import Network
    from outlay.vision.profiler import Profile

WHAT = {
    "profile": "what networks cost, layer by layer: arithmetic, memory, time, energy",
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

`outlay vision WHAT --help` shows the options.
"""
)
PROFILE_NOTES = """MODEL is one of ours, timm:NAME, package.module:function, or a folder that outlay wrote. Ours:
{designs}

A multiply-add is 2 FLOPs. mem elements is the paper's memory access cost: elements of input, output and weight of
convolutions and matrix products. moved is all that is read and written, what concatenation moves included.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay vision WHAT [...]"
    parser.add_argument("what", nargs="?", metavar="WHAT", help=", ".join(WHAT))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Does what is asked for; returns the exit status."""
    kinds: dict[str, tuple[Callable[[Parser], None], Callable[[Any], int]]] = {
        "profile": (_profile_arguments, _profile),
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
    header = ("network", "cpu ms", "ms", "GFLOP", "GFLOP/s", "M mem elements", "moved MB", "peak MB", "M parameters",
              "weights MB", "mJ")  # fmt: skip
    rows = [
        (
            profile.name,
            *(digits(value) for value in (
                profile.cpu_seconds * 1e3, profile.seconds * 1e3, profile.cost.total.flops / 1e9,
                profile.flops_per_second / 1e9, profile.cost.total.mem_elements / 1e6,
                profile.cost.total.moved_bytes / 1e6, profile.cost.peak_activation_bytes / 1e6,
                profile.cost.total.parameters / 1e6, profile.cost.total.weight_bytes / 1e6,
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
