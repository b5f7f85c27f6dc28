"""The report of the coupling suite: codes, games, texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlay import machine
from outlay.tables import console, number, table


def codes(found: Mapping[str, Any]) -> str:
    """Returns the codes of static sources."""
    rows = [
        (row["source"], f"{row['rate']:g} H = {row['bits']:.2f}", *(f"{row[name]:.3f}" for name in CODES),
         f"{row['greedy'] / row['uniform']:.2f}x")
        for row in found["static"]
    ]  # fmt: skip
    return table(("I(X;T), bits", "rate", *CODES, "greedy over uniform"), rows)


CODES = ("greedy", "refined", "uniform")


def games(found: Mapping[str, Any]) -> str:
    """Returns how games end."""
    rows = [
        (f"{row['rate']:g} H", row["code"], f"{row['right']:.3f}", f"{row['belief']:.3f}", f"{row['reward']:.3f}")
        for row in found["games"]
    ]
    rows.append(("-", "no message", "-", "-", f"{found['usual']:.3f}"))
    return table((f"rate, {found['episodes']} games", "code", "right", "belief in the message", "return"), rows)


def texts(found: Mapping[str, Any]) -> str:
    """Returns what texts take and tell."""
    rows = [
        (f"{row['rate']:g}", f"{row['whole']} of {found['count']}", f"{row['right']}",
         "-" if row["tokens"] is None else number(row["tokens"]),
         "-" if row["tokens"] is None else f"{8 * 17 / row['tokens']:.2f}", _surprise(row["surprise"]))
        for row in found["texts"]
    ]  # fmt: skip
    rows.append(("-", "no message", "-", "-", "-", _surprise(found["usual_surprise"])))
    header = ("rate", "told whole", "read right", "tokens (median)", "bits a token", "-log2 p of a token")
    return table(header, rows)


def _surprise(spread: Sequence[float]) -> str:
    return f"{spread[0]:.2f} ± {spread[1]:.2f}"


def report(found: Mapping[str, Any]) -> str:
    """Returns the report as text; `found` is what the suite writes as JSON."""
    return "\n\n".join((machine.heading(found["machine"]), codes(found), games(found), texts(found)))


TABLES = {"report": lambda found: console("outlay bench coupling", report(found))}
