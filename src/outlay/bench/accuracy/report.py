"""The report of the accuracy suite: one table, and what the default format costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay import machine
from outlay.tables import console, number, table

DEFAULT = "auto"


def report(found: Mapping[str, Any]) -> str:
    """Returns the report as text; `found` is what the suite writes as JSON."""
    return "\n\n".join(
        filter(None, (_heading(found), _rows(found), _ratios(found), _questions(found), _default(found)))
    )


def _heading(found: Mapping[str, Any]) -> str:
    """What was measured, and where."""
    lines = [machine.heading(found["machine"])]
    if found["rows"]:
        extent, first = found["extent"], found["rows"][0]
        lines += [
            f"{found['text']}: {extent['windows']} windows of {extent['window']} tokens, the second half of each "
            f"scored, {first['tokens']} tokens in all",
            f"greedy: {extent['prompts']} prompts of {extent['prompt']} tokens of the text, continued by "
            f"{extent['new']}",
            f"reference: the same weights in float32, perplexity {first['reference_perplexity']:.3f}",
        ]
    return "\n".join(lines)


def _rows(found: Mapping[str, Any]) -> str:
    """A row for each format of weights and cache."""
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


def _ratios(found: Mapping[str, Any]) -> str:
    """A row for each shrunk checkpoint: its bits, and its perplexity over the reference's."""
    cells = [
        [row["name"], f"{row['bits']:.3f}", "{:.3f} ({:.3f}-{:.3f})".format(*row["ratio"])]
        for row in found["rows"]
        if row.get("bits") is not None
    ]
    return table(["", "bits a weight", "perplexity over float32's (95 %)"], cells) if cells else ""


def _questions(found: Mapping[str, Any]) -> str:
    """A row for each checkpoint and task of `lm_eval` that the original does clearly better than guesses."""
    asked = found.get("questions", [])
    cells = [
        [name, each["task"], f"{each['docs']}", f"{100 * each['chance']:.0f}", f"{100 * each['original']:.1f}",
         f"{100 * own['share']:.1f}", "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * bound for bound in own["change"]))]
        for each in asked if each["is_clear"] for name, own in each["others"].items()
    ]  # fmt: skip
    header = ["", "task", "documents", "chance %", "original %", "right %", "change in points (95 %)"]
    guessed = [
        f"{each['task']}: the original has {100 * each['original']:.1f} % of {each['docs']} right, not clearly "
        f"above chance ({100 * each['chance']:.0f} %), so nothing is compared"
        for each in asked if not each["is_clear"]
    ]  # fmt: skip
    return "\n".join(([table(header, cells)] if cells else []) + guessed)


def _default(found: Mapping[str, Any]) -> str:
    """What the default format costs."""
    row = next((row for row in found["rows"] if row["name"] == DEFAULT), None)
    return "" if row is None else f"the default, {DEFAULT} ({row['held']}), costs {row['cost']:.2%} of the perplexity"


TABLES = {"report": lambda found: console("outlay bench accuracy", report(found))}
