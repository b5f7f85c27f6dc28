"""The report of the accuracy suite: one table, and whether the default format keeps its bound."""

from __future__ import annotations

from typing import Any

from outlay.bench.table import console, number, table

BOUND = 0.01  # of the perplexity: what the default format may cost over its own weights in float32
DEFAULT = "auto"


def report(found: dict[str, Any]) -> str:
    """Returns the report as text; `found` is what the suite writes as JSON."""
    return "\n\n".join(filter(None, (heading(found), rows(found), bound(found))))


def heading(found: dict[str, Any]) -> str:
    """What was measured, and where."""
    machine, extent, first = found["machine"], found["extent"], found["rows"][0]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    window = extent["window"]
    return (
        f"{machine['model']} on {machine['processor']}; {machine['date']}\n"
        f"{versions}; {machine['seconds']:.0f} s\n"
        f"{found['text']}: {extent['windows']} windows of {window} tokens, the second half of each scored, "
        f"{first['tokens']} tokens in all\n"
        f"greedy: {extent['prompts']} prompts of {extent['prompt']} tokens of the text, continued by {extent['new']}\n"
        f"reference: the same weights in float32, perplexity {first['reference_perplexity']:.3f}"
    )


def rows(found: dict[str, Any]) -> str:
    """One row for each way to hold weights and cache."""
    new = found["extent"]["new"]
    header = ["", "perplexity", "cost %", "KL", "top-1 %", f"same of {new}", "layers %", "worst %", "worst layer"]
    cells = [
        [
            row["name"],
            f"{row['perplexity']:.3f}",
            f"{100 * row['cost']:+.2f} ± {200 * row['cost_error']:.2f}",
            f"{row['kl']:.5f}",
            f"{100 * row['agreement']:.1f}",
            f"{row['same']:.1f}",
            number(100 * row["layer_mean"]),
            number(100 * row["layers"][row["layer_worst"]]),
            row["layer_worst"],
        ]
        for row in found["rows"]
    ]
    cells += [[name, f"not measured: {reason}"] for name, reason in found["failures"].items()]
    return table(header, cells)


def bound(found: dict[str, Any]) -> str:
    """Whether the default format costs no more than it may."""
    row = next((row for row in found["rows"] if row["name"] == DEFAULT), None)
    if row is None:
        return ""
    kept = "yes" if row["cost"] <= BOUND else "no"
    return (
        f"the default, {DEFAULT} ({row['held']}), may cost {BOUND:.0%} and costs {row['cost']:.2%}: bound kept: {kept}"
    )


TABLES = {"report": lambda found: console("outlay bench accuracy", report(found))}
