"""The report of the serve suite: a row for each server and number of clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlay import machine
from outlay.spread import middle, paired_ratio
from outlay.tables import console, number, table, times

ENGINE = "the engine alone"
HEADER = ["", "clients", "tokens/s", "over the engine", "first token, ms", "its p95", "gap p95, ms"]


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    settings, rows = found["settings"], found["rows"]
    cells = []
    for name in (ENGINE, *settings["servers"]):
        for clients in map(str, settings["clients"]) if name in rows else ():
            cells.append(_row(name, clients, rows))
    cells += [[name, f"not measured: {reason}"] for name, reason in found["failures"].items()]
    what = f"answers of up to {settings['new']} tokens, streamed; medians of {settings['rounds']} rounds, in turn"
    return f"{machine.heading(found['machine'], settings['threads'])}\n\n{what}\n{table(HEADER, cells)}"


def _row(name: str, clients: str, rows: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[str]:
    rounds, alone = rows[name].get(clients, []), rows[ENGINE].get(clients, [])
    speeds = [each["per_second"] for each in rounds]
    if name == ENGINE:
        return [name, clients, number(middle(speeds)), "1", "-", "-", "-"]
    ratio = paired_ratio(speeds, [each["per_second"] for each in alone][: len(speeds)])
    first = sorted(seconds for each in rounds for seconds in each["first"])
    gaps = sorted(seconds for each in rounds for seconds in each["gaps"])
    waits = [_milliseconds(middle(first)), _milliseconds(_p95(first)), _milliseconds(_p95(gaps))]
    return [name, clients, number(middle(speeds)), times(ratio), *waits]


def _p95(values: Sequence[float]) -> float | None:
    return values[min(len(values) - 1, int(0.95 * len(values)))] if values else None


def _milliseconds(seconds: float | None) -> str:
    return number(None if seconds is None else 1000 * seconds)


TABLES = {"report": lambda found: console("outlay bench serve", report(found))}
