"""The report of the codec suite: a row for each file, and the rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay import machine
from outlay.tables import console, table


def report(found: Mapping[str, Any]) -> str:
    """Returns the report as text; `found` is what the suite writes as JSON."""
    header = ["", "bytes", "zlib -9", "xz -9e", "kept", "over xz", "over ideal", "tokens/s", "won"]
    rows = [
        [
            row["name"],
            f"{row['bytes']:,}",
            f"{row['zlib']:,}",
            f"{row['xz']:,}",
            f"{row['kept']:,}",
            f"{row['kept'] / row['xz']:.3f}",
            "-" if row["over_ideal"] is None else f"{row['over_ideal']:.2%}",
            f"{row['symbols'] / row['seconds']:.0f}" if row["symbols"] else "-",
            row["won"],
        ]
        for row in found["rows"]
    ]
    read = found["read"]
    speed = read["symbols"] / read["seconds"]
    rate = f"read together, {read['blocks']} blocks: {speed:.0f} tokens/s; every byte came back"
    parts = [machine.heading(found["machine"]), table(header, rows), rate]
    if found.get("photos"):  # results from before there were some have none
        header = ["bits a sample", *found["photos"][0]["bits"]]
        photos = [[row["name"], *(f"{bits:.2f}" for bits in row["bits"].values())] for row in found["photos"]]
        parts.append(table(header, photos))
    return "\n\n".join(parts)


TABLES = {"report": lambda found: console("outlay bench codec", report(found))}
