"""The report of the drafts suite."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from outlay.bench.table import console, number, table


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    machine = found["machine"]
    heading = f"{machine['model']} on {machine['processor']}; {machine['date']}, in {machine['seconds']:.0f} s"
    parts, prompts = [heading], found["prompts"]
    if "nodes" in found:
        parts.append(_nodes(found["nodes"]))
    if "trees" in found:
        parts.append(_trees(found["trees"], prompts))
    if "tables" in found:
        parts.append(_tables(found["tables"], prompts))
    if "superposed" in found:
        parts.append(_superposed(found["superposed"], prompts))
    goals = table(
        ["", "wanted", "reached", "met"], [goal for part in GOALS if part in found for goal in GOALS[part](found[part])]
    )
    return "\n\n".join([*parts, f"Goals\n{goals}"])


def _nodes(found: Mapping[str, Any]) -> str:
    header = ["temperature, drafts", "one draft", "independent, recursive", "independent, K-SEQ", "best possible",
              "without replacement (RSD)"]  # fmt: skip
    rows = [
        [f"{row['temperature']:g}, {row['k']}",
         *(f"{row[name]:.3f}" for name in ("single", "recursive", "kseq", "optimum")),
         f"{row['rsd']:.3f} ± {row['rsd_error']:.3f}"]
        for row in found["rows"]
    ]  # fmt: skip
    what = f"How often a drafted token is taken, over {found['positions']} positions of text"
    return f"{what} (the draft: the target seeing 8 tokens)\n{table(header, rows)}"


def _trees(found: Mapping[str, Any], prompts: int) -> str:
    rows = [
        [row["method"], number(row["block_efficiency"]), number(row["nodes"]), number(row["draft_passes"])]
        for row in sorted(found["rows"], key=lambda row: -row["block_efficiency"])
    ]
    of = f"at temperature {found['temperature']:g}, at most {found['nodes']} nodes, {prompts} prompts"
    return f"Tokens a target pass {of}\n{table(['', 'tokens a pass', 'nodes', 'draft passes'], rows)}"


def _tables(found: Mapping[str, Any], prompts: int) -> str:
    sets = list(dict.fromkeys(row["set"] for row in found["rows"]))
    at = {(row["method"], row["set"]): row["tokens_per_pass"] for row in found["rows"]}
    rows = [
        [method, *(number(at[method, name]) for name in sets)]
        for method in dict.fromkeys(row["method"] for row in found["rows"])
    ]
    what = f"Tokens a target pass without a draft model, temperature 0, {prompts} prompts x {found['new']} tokens"
    return f"{what}\n{table(['', *sets], rows)}"


def _superposed(found: Mapping[str, Any], prompts: int) -> str:
    header = ["", "passes", "positions", "ppl, best", "ppl, all", "next word among them", "ms"]
    rows = []
    for row in found["rows"]:
        cells = [number(row.get(name)) for name in ("passes", "positions", "best", "mean")]
        covered = f"{row['covered']:.0%}" if "covered" in row else "-"
        rows.append([row["name"], *cells, covered, number(1000 * row["seconds"])])
    what = f"Three completions of {found['new']} tokens after {found['prefix']}, {prompts} prompts"
    return f"{what} (perplexities: geometric means under the model)\n{table(header, rows)}"


def _of_nodes(found: Mapping[str, Any]) -> list[list[str]]:
    at = {(row["temperature"], row["k"]): row for row in found["rows"]}
    return [
        _least("RSD over independent siblings, k=4, T=0.3", 1.15, at[0.3, 4]["rsd"] / at[0.3, 4]["recursive"]),
        _least("RSD over independent siblings, k=4, T=0.6", 1.06, at[0.6, 4]["rsd"] / at[0.6, 4]["recursive"]),
        _least("K-SEQ over one draft, k=4, T=1", 1.25, at[1.0, 4]["kseq"] / at[1.0, 4]["single"]),
        _least("K-SEQ over the optimum, k=4, T=1", 0.93, at[1.0, 4]["kseq"] / at[1.0, 4]["optimum"]),
        _least("K-SEQ over the optimum at any position", 0.632, min(row["least_share"] for row in at.values())),
    ]


def _of_trees(found: Mapping[str, Any]) -> list[list[str]]:
    chains = max(row["block_efficiency"] for row in found["rows"] if row["family"] == "speculative")
    trees = max(row["block_efficiency"] for row in found["rows"] if row["family"] == "rsd")
    return [_least("best RSD tree over the best chain, 14 nodes, T=0.3", 1.05, trees / chains)]


def _of_tables(found: Mapping[str, Any]) -> list[list[str]]:
    at = {(row["method"], row["set"]): row["tokens_per_pass"] for row in found["rows"]}
    ppd = mean(value for (method, _), value in at.items() if method.startswith("ppd"))
    static, adaptive, primed, lookup = (
        at[method, "code"]
        for method in ("aded:prime_prompt=0,update=off", "aded:prime_prompt=0", "aded", "lookup:tokens=16")
    )
    return [
        _least("PPD, first token", 0.20, found["first_guess"]),
        _least("PPD, tokens a pass, mean of the sets", 1.30, ppd),
        _most("PPD, measured from predicted", 0.10, abs(ppd / found["predicted"] - 1)),
        _least("ADED over its table alone, code", 1.10, adaptive / static),
        _least("ADED that has read the prompt, tokens a pass, code", 1.7, primed),
        _least("ADED that has read the prompt over lookup, code", 1.0, primed / lookup),
    ]


def _of_superposed(found: Mapping[str, Any]) -> list[list[str]]:
    rows = {row["name"]: row for row in found["rows"]}
    ours, nucleus = rows["superposed, not ranked again"], rows["nucleus, three samples"]
    return [
        _most("superposed positions over three nucleus samples", 0.40, ours["positions"] / nucleus["positions"]),
        _most("best superposed draft's perplexity over nucleus's", 1.10, rows["superposed"]["best"] / nucleus["best"]),
        _least("three sequential samples over superposed, time", 1.8, nucleus["seconds"] / ours["seconds"]),
    ]


def _least(what: str, wanted: float, reached: float) -> list[str]:
    return [what, f"{wanted:g} or more", f"{reached:.3f}", "yes" if reached >= wanted else "no"]


def _most(what: str, wanted: float, reached: float) -> list[str]:
    return [what, f"{wanted:g} or less", f"{reached:.3f}", "yes" if reached <= wanted else "no"]


GOALS = {"nodes": _of_nodes, "trees": _of_trees, "tables": _of_tables, "superposed": _of_superposed}


def _command(found: Mapping[str, Any]) -> str:
    parts = ",".join(part for part in GOALS if part in found)
    return "outlay bench drafts" + ("" if parts == ",".join(GOALS) else f" --parts {parts}")


TABLES = {"report": lambda found: console(_command(found), report(found))}
