"""The report of the arch suite: a row for each input and output length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay import machine
from outlay.tables import console, number, table


def report(found: Mapping[str, Any]) -> str:
    """Returns the report as text; `found` is what the suite writes as JSON."""
    return f"{machine.heading(found['machine'], 1)}\n\n{cells(found)}"


def cells(found: Mapping[str, Any]) -> str:
    """Returns the table of all lengths, and what was measured."""
    settings, parameters = found["settings"], found["parameters"]
    header = ["in", "out", "first token ms", "over", "tokens/s", "over", "cache kB", "over"]
    rows = []
    for cell in found["cells"]:
        one, other = cell["decoder-only"], cell["encoder-decoder"]
        pairs = [
            (one["first"] * 1e3, other["first"] * 1e3),
            (1 / one["each"], 1 / other["each"]),
            (one["bytes"] / 1e3, other["bytes"] / 1e3),
        ]
        written = [f"{number(before)} -> {number(after)}" for before, after in pairs]
        ratios = [f"{after / before:.2f}x" for before, after in pairs]
        joined = [text for pair in zip(written, ratios, strict=True) for text in pair]
        rows.append([str(cell["inputs"]), str(cell["outputs"]), *joined])
    split = f"{settings['encoder']} encoder and {settings['decoder']} decoder layers"
    return "\n\n".join(
        (
            table(header, rows),
            f"decoder-only ({settings['layers']} layers, {parameters['decoder-only'] / 1e6:.1f}M parameters) -> "
            f"encoder-decoder ({split}, {parameters['encoder-decoder'] / 1e6:.1f}M)\n"
            f"width {settings['hidden']}, {settings['dtype']}; processor time of one thread, the least of "
            f"{settings['rounds']} rounds; batch 1",
        )
    )


TABLES = {"report": lambda found: console("outlay bench arch", report(found))}
