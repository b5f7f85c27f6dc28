"""The report of the batching suite: a table of samplers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay import machine
from outlay.tables import console, number, table

LIMITS = {None: "-", "device": "device", "recipe": "recipe's"}
BASE = "1-D 20, 360 s, quadratic 15"


def report(found: Mapping[str, Any]) -> str:
    """Returns the report as text; `found` is what the suite writes as JSON."""
    return f"{machine.heading(found['machine'])}\n\n{samplers(found)}"


def samplers(found: Mapping[str, Any]) -> str:
    """Returns the table of samplers, and what was measured."""
    settings = found["settings"]
    base = next(row for row in found["rows"] if row["name"] == BASE)
    header = ["sampler", "memory", "input pad", "output pad", "mean batch", "over recipe", "left out", "peak GiB"]
    rows = [
        [
            row["name"], LIMITS[row["limit"]], f"{row['input_padding']:.1%}", f"{row['output_padding']:.1%}",
            number(row["mean_batch"]), f"{row['mean_batch'] / base['mean_batch']:.1f}x", f"{row['discarded']:.2%}",
            number(row["peak_bytes"] / 2**30),
        ]
        for row in found["rows"]
    ]  # fmt: skip
    device = f"{settings['share']:.0%} of {settings['memory'] / 2**30:.0f} GiB"
    return "\n\n".join(
        (
            table(header, rows),
            f"{settings['examples']:,} examples. By the formula of Canary-1B's shape, batch sizes fit into\n"
            f"{device} (device), or into the {found['recipe_bytes'] / 2**30:.1f} GiB that the recipe's own "
            f"batches take at most (recipe's).\nRecipe: {BASE}.",
        )
    )


TABLES = {"report": lambda found: console("outlay bench batching", report(found))}
