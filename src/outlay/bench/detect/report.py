"""The report of the detect suite: a row for each layer of each detector, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay import machine
from outlay.tables import console, table


def report(found: Mapping[str, Any]) -> str:
    """Returns the report as text; `found` is what the suite writes as JSON."""
    parts = [machine.heading(found["machine"])]
    for each in found["detectors"]:
        rows = [
            [
                str(row["layers"]), *(_percent(row["score"][name]) for name in ("ap", "ap50", "ap75")),
                f"{1e3 * row['costs']['seconds']:.1f}", f"{1e3 * row['costs']['cpu_seconds']:.1f}",
                f"{row['costs']['flops'] / 1e9:.3f}",
            ]
            for row in each["layers"]
        ]  # fmt: skip
        header = ["layers", "AP", "AP50", "AP75", "ms", "CPU ms", "GFLOP"]
        about = f"{each['name']} on {each['pictures']} pictures of {each['data']}, {each['side']} px, "
        about += f"{each['queries']} queries"
        parts.append(f"{about}\n{table(header, rows)}\n{_repeated(each)}\n{_chosen(each['choice'])}")
    return "\n\n".join(parts)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _repeated(each: Mapping[str, Any]) -> str:
    return f"detections that suppression at IoU 0.7 would remove: {each['repeated']:.2%}"


def _chosen(choice: Mapping[str, Any]) -> str:
    budget = f"within {1e3 * choice['budget']:.1f} ms"
    if "error" in choice:
        return f"{budget}: {choice['error']}"
    return (
        f"{budget}: predicted {1e3 * choice['predicted']:.1f} ms, measured again {1e3 * choice['again']:.1f} ms "
        f"({choice['away']:.0%} away): {choice['command']}"
    )


TABLES = {"report": lambda found: console("outlay bench detect", report(found))}
