"""The report of the cache suite, made of its results alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from outlay import machine
from outlay.bench.cache import captions
from outlay.tables import console, markdown, number, table

Row = Sequence[str]


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    if "captions" in found:
        return captions.report(found)
    rows = parts(found)
    said = [heading(found), table(*rows)]
    if found.get("kvpress"):
        said.append(f"kvpress, {found['share']:.1%} of the tokens in each layer\n{table(*beside(found))}")
    return "\n\n".join([*said, *(f"{name}: not measured: {reason}" for name, reason in found["failures"].items())])


def heading(found: Mapping[str, Any]) -> str:
    """What was measured, and where."""
    settings = found["settings"]
    said = (
        f"{settings['scored']} tokens after {settings['prompt']:,}, {settings['passages']} passages; "
        "bytes are over those of the prompt in 16 bits"
    )
    return f"{machine.heading(found['machine'], 1)}\n{said}"


def parts(found: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Perplexity, what it is over dense, and what was held."""
    header = [
        "",
        "perplexity",
        "over dense",
        "from passage to passage",
        "important",
        "payload",
        "with scales",
        "attention FLOPs",
    ]
    dense, rows = found["parts"].get("dense", []), list[Row]()
    for name, values in found["parts"].items():
        changes = [math.exp(each["nats"] - plain["nats"]) - 1 for each, plain in zip(values, dense, strict=False)]
        total = sum(each["dense"] for each in values)
        payload = sum(each["payload"] for each in values) / total
        held = sum(each["payload"] + each["overhead"] for each in values) / total
        kept = [share for each in values for share in each["kept"]]
        rows.append(
            [
                name,
                number(_perplexity(values)),
                "" if name == "dense" else f"{_perplexity(values) / _perplexity(dense) - 1:+.1%}",
                "" if name == "dense" else f"{min(changes):+.1%} to {max(changes):+.1%}",
                f"{sum(kept) / len(kept):.2f} ({min(kept):.2f}-{max(kept):.2f})",
                f"1/{1 / payload:.2f}",
                f"1/{1 / held:.2f}",
                f"{sum(each['flops'] for each in values) / len(values) - 1:+.0%}",
            ]
        )
    return header, rows


def beside(found: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Perplexity of kvpress over its own dense cache."""
    nats: Mapping[str, Any] = found["kvpress"]["nats"]
    rows: list[Row] = []
    for name, values in nats.items():
        if isinstance(values, str):
            rows.append([name, "", values.splitlines()[0][:80]])
            continue
        mean, dense = (math.exp(sum(each) / len(each)) for each in (values, nats["dense"]))
        rows.append([name, number(mean), "" if name == "dense" else f"{mean / dense - 1:+.1%}"])
    return ["", "perplexity", "over its dense"], rows


def _perplexity(values: Sequence[Mapping[str, Any]]) -> float:
    return math.exp(sum(each["nats"] for each in values) / len(values))


TABLES = {
    "captions": lambda found: console(captions.command(found), captions.report(found)),
    "captions-drawn": lambda found: console(captions.command(found), captions.brief(found)),
    "parts": lambda found: markdown(*parts(found)),
    "kvpress": lambda found: markdown(*beside(found)) if found.get("kvpress") else "kvpress was not run.",
}
