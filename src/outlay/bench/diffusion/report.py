"""The report of the diffusion suite: a table for each source, each trained model, and the passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay import machine
from outlay.bench.diffusion.passes import BLOCKS
from outlay.tables import console, number, table

BASE = "threshold"
HEADINGS = {
    "independent": "independent phrases at temperature 1",
    "dependent": "phrases that depend on the one before, at temperature 1",
    "noisy": "phrases with noise in each letter, greedy",
    "pareto": "ETE on dependent phrases at temperature 1, by explored positions and thresholds",
}


DICTIONARIES = {
    "ambiguous": "four phrases a key, at temperature 1",
    "ambiguous_greedy": "four phrases a key, greedy",
    "noise": "two phrases a key with noise in each letter, at temperature 1",
    "noise_greedy": "two phrases a key with noise in each letter, greedy",
}


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    heading = machine.heading(found["machine"])
    return "\n\n".join([heading, *_exact(found), *_trained(found), *_learned(found), *_passes(found)])


def _exact(found: Mapping[str, Any]) -> list[str]:
    return [_part(found, part) for part in HEADINGS if part in found]


def _trained(found: Mapping[str, Any]) -> list[str]:
    parts = [_dictionary(found[part], heading) for part, heading in DICTIONARIES.items() if part in found]
    return [*parts, *([_determinism(found["determinism"])] if "determinism" in found else [])]


def _dictionary(found: Mapping[str, Any], heading: str) -> str:
    """Returns the table of one trained model."""
    rows = found["rows"]
    base = next(row for row in rows if row["rule"] == BASE)
    columns = {"same": "same as one by one", "bad": "bad slots", "first": "first phrase", "off": "letters off"}
    shown = [name for name in columns if all(name in row for row in rows)]
    lines = [
        [row["rule"], f"{row['passes']:.2f}", f"{row['passes'] / base['passes']:.2f}",
         *(f"{row[name]:.2f}" if name == "off" else f"{row[name]:.1%}" for name in shown)] for row in rows
    ]  # fmt: skip
    header = ["", "passes", "over threshold", *(columns[name] for name in shown)]
    return f"{found['model']}, {heading}: 24 letters, {found['samples']} questions\n{table(header, lines)}"


def _determinism(found: Mapping[str, Any]) -> str:
    heading = "Proposals of confidence 0.75 to 0.9, one by one: the share that is the final token"
    curves = {model: {row["distance"]: row for row in curve} for model, curve in found["curves"].items()}
    distances = dict.fromkeys(row["distance"] for curve in found["curves"].values() for row in curve)
    lines = [
        [each, *(f"{curve[each]['final']:.1%} of {curve[each]['cases']:,}" if each in curve else "-" for curve in
                 curves.values())] for each in distances
    ]  # fmt: skip
    header = ["positions to the nearest anchor", *curves]
    return f"{heading}, {found['samples']} questions\n{table(header, lines)}"


def _learned(found: Mapping[str, Any]) -> list[str]:
    """Returns Learn2PD's tables, one for each task."""
    if "learned" not in found:
        return []
    return [_learned_task(each) for each in found["learned"]["tasks"]]


def _learned_task(found: Mapping[str, Any]) -> str:
    rows = {row["rule"]: row for row in found["rows"]}
    base = rows[BASE]
    lines = [
        [rule, f"{row['passes']:.2f}", f"{row['passes'] / base['passes']:.2f}", number(row["positions"]),
         f"{row['same']:.1%}", f"{row['right']:.1%}"] for rule, row in rows.items()
    ]  # fmt: skip
    header = ["", "passes", "over threshold", "positions", "same as one by one", "right"]
    heading = (
        f"{found['task']}: canvas {found['length']}, {found['samples']} questions, filters of {found['fitted']} others"
    )
    ours = next(row for rule, row in rows.items() if rule.startswith("learn2pd, "))
    rivals = [row for rule, row in rows.items() if rule.startswith(BASE) and row["same"] >= ours["same"]]
    best = min(rivals, key=lambda row: row["passes"], default=None)
    if best is None:
        told = "No threshold here writes as many of the same texts."
    else:
        ratio = ours["passes"] / best["passes"]
        told = (
            f"learn2pd takes {ratio:.2f} of the passes of the cheapest threshold that agrees as often ({best['rule']})."
        )
    return f"{heading}\n{table(header, lines)}\n{told}"


def _passes(found: Mapping[str, Any]) -> list[str]:
    if "passes" not in found:
        return []
    part = found["passes"]
    seconds, one = part["seconds"], part["seconds"]["one"]
    names = {"one": "one token (autoregressive)", "whole": "the whole canvas", "side": "16 blocks of 32 of 16 canvases"}
    sizes = {f"block {size}": size for size in BLOCKS}
    lines = [
        [names.get(name, f"a {name}"), f"{1000 * taken:.1f} ms", f"{taken / one:.1f}",
         *(number(break_even(sizes[name], seconds, cache)) if name in sizes else "" for cache in ("exact", "dual"))]
        for name, taken in seconds.items()
    ]  # fmt: skip
    dual, side = seconds["block 32"] / seconds["whole"], 16 * seconds["block 32"] / seconds["side"]
    header = ["a pass over", "took", "passes of one token", "break-even, exact", "break-even, dual"]
    return [
        f"CPU time of a pass in {part['format']}, prompt {part['prompt']}, canvas {part['canvas']}, one thread,\n"
        "and the tokens that a round must fill to beat this network writing one token a pass; - where no number does\n"
        f"{table(header, lines)}\n"
        f"A block of 32 takes {dual:.2f} of the whole canvas. 16 canvases together do {side:.2f} of the work a second\n"
        "that they do one after the other."
    ]


def break_even(size: int, seconds: Mapping[str, float], cache: str) -> float | None:
    """Returns the tokens that a round must fill for a block to take no longer than its tokens one by one.

    With k tokens a round, a block of n takes n / k passes over it. Beside these "exact" computes it once more when it
    is finished, and "dual" the whole canvas in place of its first pass.

    Args:
        size: Positions of the block.
        seconds: What passes take.
        cache: "exact" or "dual".

    Returns:
        None where no number of tokens is enough.
    """
    block = seconds[f"block {size}"]
    beside = block if cache == "exact" else seconds["whole"] - block
    left = size * seconds["one"] - beside
    needed = size * block / left if left > 0 else None
    return needed if needed is not None and needed <= size else None


def _part(found: Mapping[str, Any], part: str) -> str:
    """Returns the table of one source."""
    rows, entropy = found[part]["rows"], found[part]["entropy"]
    by_rule = {row["rule"]: row for row in rows}
    base = by_rule.get(BASE) or by_rule["ete:explore=0,tau=0.9,tau_next=0.9"]
    header = ["", "rounds", "over threshold", "nats of the text", "nats committed", "broken phrases"]
    if part == "noisy":
        header = ["", "rounds", "over threshold", "same texts as one by one"]
    lines = [_line(row, base) for row in rows]
    source = f"; entropy of the source {entropy:.1f} nats" if part != "noisy" else ""
    heading = f"{HEADINGS[part]}: {found['letters']} letters, {found['samples']} texts{source}"
    return f"{heading}\n{table(header, lines)}"


def _line(row: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    cells = [row["rule"], number(row["rounds"]), f"{row['rounds'] / base['rounds']:.2f}"]
    if "same" in row:
        return [*cells, f"{row['same']:.0%}"]
    text = "impossible" if row["nll"] is None else f"{row['nll']:.1f} ± {row['nll_error']:.1f}"
    return [*cells, text, number(row["nats"]), f"{row['broken']:.1%}"]


def rules(found: Mapping[str, Any]) -> str:
    """The tables of the exact denoisers as the documentation shows them."""
    return console("outlay bench diffusion", "\n\n".join([machine.heading(found["machine"]), *_exact(found)]))


def trained(found: Mapping[str, Any]) -> str:
    """The trained models' tables as the documentation shows them."""
    return console("outlay bench diffusion", "\n\n".join([machine.heading(found["machine"]), *_trained(found)]))


def learned(found: Mapping[str, Any]) -> str:
    """Learn2PD's tables as the documentation shows them."""
    parts = [machine.heading(found["machine"]), *_learned(found)]
    return console("outlay bench diffusion --parts learned", "\n\n".join(parts))


def costs(found: Mapping[str, Any]) -> str:
    """What passes cost as the documentation shows it."""
    return console("outlay bench diffusion", "\n\n".join([machine.heading(found["machine"]), *_passes(found)]))


TABLES = {"rules": rules, "trained": trained, "learned": learned, "costs": costs}
