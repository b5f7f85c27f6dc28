"""The report of the encoders suite: a table for each part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from outlay import machine
from outlay.bench.arch.report import cells
from outlay.bench.batching.report import samplers
from outlay.spread import middle, paired_ratio
from outlay.tables import console, number, table, times

PEER = "onnxruntime, 8 bits"


def report(found: Mapping[str, Any]) -> str:
    """Returns the report as text; `found` is what the suite writes as JSON."""
    parts = [f"{part}\n{make(found)}" for part, make in PARTS.items() if part in found or part in found["missing"]]
    return "\n\n".join([machine.heading(found["machine"], 1), *parts])


def forms(found: Mapping[str, Any]) -> str:
    """Returns the table of forms: differences from a peer on tiny random checkpoints."""
    rows = [
        [
            row["form"], row["peer"], f"{row['log_prob']:.1e}", f"{row['greedy']} of {row['inputs']}",
            f"{row['beam']} of {row['inputs']}", str(row["encoder_passes"]),
        ]
        for row in found["forms"]
    ]  # fmt: skip
    header = ["form", "peer", "log prob off by", "same greedy", "same beam of 3", "encoder passes"]
    return table(header, rows)


def speech(found: Mapping[str, Any]) -> str:
    """Returns the tables of speech: contenders on all clips, and what is heard together."""
    heard = found["speech"]
    base: list[float] = next((row["cpu"] for row in heard["rows"] if row["name"] == PEER), [])
    rows = [
        [
            row["name"], number(heard["seconds"] / (middle(row["cpu"]) or 1)), times(paired_ratio(base, row["cpu"])),
            str(row["tokens"]), "-" if row["different"] is None else str(row["different"]),
        ]
        for row in heard["rows"]
    ]  # fmt: skip
    rows += [[name, reason] for name, reason in heard["missing"].items()]
    clock = heard["together"]
    return "\n".join(
        (
            table(["Moonshine Tiny", "RTFx", f"over {PEER}", "tokens", "words not its"], rows),
            f"{heard['seconds']:.0f} s of sound in {heard['clips']} clips. In float32, 16 utterances together over one "
            f"by one: {times(paired_ratio(clock['one by one'], clock['together']))}; `auto` over `greedy`: "
            f"{times(paired_ratio(clock['greedy'], clock['auto']))}.",
        )
    )


def architecture(found: Mapping[str, Any]) -> str:
    """Returns the tables of architectures: an encoder-decoder over a decoder, and layers moved into the encoder."""
    made = found["architecture"]
    splits = made["splits"]
    one, other = splits["parameters"]
    rows = []
    for row in splits["rows"]:
        sound = splits["seconds"] * row["batch"]
        rtfx = [number(sound / (middle(row["cpu"][name]) or 1)) for name in (one, other)]
        rows.append([str(row["batch"]), *rtfx, times(paired_ratio(row["cpu"][one], row["cpu"][other]))])
    sizes = ", ".join(f"{name} {size / 1e6:.1f}M" for name, size in splits["parameters"].items())
    return "\n".join(
        (
            cells(made["grid"]),
            "",
            table(["batch", f"RTFx {one}", f"RTFx {other}", "over"], rows),
            f"layers of encoder/decoder, width 256: {sizes} parameters; {splits['frames']} places in, "
            f"{splits['tokens']} tokens out for {splits['seconds']:.0f} s",
        )
    )


def batching(found: Mapping[str, Any]) -> str:
    """Returns the table of samplers."""
    made = found["batching"]
    missing = [] if made["missing"] is None else [f"lhotse: {made['missing']}"]
    return "\n".join([samplers(made), *missing])


def crate(found: Mapping[str, Any]) -> str:
    """Returns the tables of CRATE: a block and a cache over a transformer's, and digits."""
    made = found["crate"]
    block, cpu, sizes = made["block"], made["block"]["cpu"], made["block"]["parameters"]
    ratio = paired_ratio(cpu["CRATE"], cpu["transformer"])
    rows = [
        ["parameters of a block", f"{sizes['CRATE']:,}", f"{sizes['transformer']:,}",
         f"{sizes['CRATE'] / sizes['transformer']:.3f}x"],
        [f"ms of {block['depth']} blocks", *(number((middle(cpu[kind]) or 0) * 1e3) for kind in cpu), times(ratio)],
    ]  # fmt: skip
    for row in made["cache"]:
        for what, name in (("read", "kv_bytes"), ("held", "kv_held")):
            ours, theirs = (row["bytes"][kind][what] for kind in ("CRATE", "transformer"))
            rows.append([f"{name}, {row['tokens']} tokens", f"{ours:,}", f"{theirs:,}", f"{ours / theirs:.3f}x"])
    lines = [
        table(["CRATE", "CRATE", "transformer", "over"], rows),
        f"blocks: width {block['dim']}, {block['tokens']} tokens. {made['same']} of {made['written']} tokens are those "
        "of the network without a cache.",
        "",
    ]
    return "\n".join([*lines, _digits(made)])


def _digits(made: Mapping[str, Any]) -> str:
    """The table of networks trained on digits: coding rates by layer, before and after."""
    rows = []
    for net in made["digits"]:
        right = f"{net['accuracy']:.1%}"
        if net["after"] is None:
            rows.append([net["name"], "-", "-", "-", "-", "-", right])
            continue
        for eps2, after in net["after"].items():
            before = net["before"][eps2]
            falls = all(later < earlier for earlier, later in pairwise(after[1:]))
            rows.append(
                [net["name"], eps2, " ".join(map(number, before)), " ".join(map(number, after)),
                 "yes" if falls else "no", f"{after[-1] / after[0]:.3f}", right]
            )  # fmt: skip
    rows += [[name, reason] for name, reason in made["missing"].items()]
    header = ["digits", "eps^2", "R^c by layer, new", "trained", "falls from 2 on", "last/first", "right"]
    return table(header, rows)


def _part(part: str, make: Callable[[Mapping[str, Any]], str]) -> Callable[[Mapping[str, Any]], str]:
    return lambda found: make(found) if part in found else f"not measured: {found['missing'][part]}"


PARTS = {part.__name__: _part(part.__name__, part) for part in (forms, speech, architecture, batching, crate)}
"""The table of each part, or why there is none."""
TABLES = {
    "report": lambda found: console("outlay bench encoders", report(found)),
    "digits": lambda found: console("outlay bench encoders --parts crate", _digits(found["crate"])),
}
