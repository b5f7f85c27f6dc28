"""The report of the drafts suite: a table for each part, and the ratios between its rows."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from outlay import machine
from outlay.tables import console, number, table


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    prompts = found["prompts"]
    parts = [machine.heading(found["machine"])]
    if "nodes" in found:
        parts.append(_nodes(found["nodes"]))
    if "trees" in found:
        parts.append(_trees(found["trees"], prompts))
    if "tables" in found:
        parts.append(_tables(found["tables"], prompts))
    if "superposed" in found:
        parts.append(_superposed(found["superposed"], prompts))
    ratios = [(what, value) for part, rows in RATIOS.items() if part in found for what, value in rows(found[part])]
    return "\n\n".join([*parts, table(["", "ratio"], [[what, f"{value:.3f}"] for what, value in ratios])])


def _nodes(found: Mapping[str, Any]) -> str:
    header = ["temperature, drafts", "one draft", "independent, recursive", "independent, K-SEQ", "best possible",
              "without replacement (RSD)"]  # fmt: skip
    rows = [
        [f"{row['temperature']:g}, {row['k']}",
         *(f"{row[name]:.3f}" for name in ("single", "recursive", "kseq", "optimum")),
         f"{row['rsd']:.3f} ± {row['rsd_error']:.3f}"]
        for row in found["rows"]
    ]  # fmt: skip
    what = f"Acceptance rate at one node, over {found['positions']} positions of text"
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
    return f"{what} (accuracy of PPD's first guess: {found['first_guess']:.0%})\n{table(['', *sets], rows)}"


def _superposed(found: Mapping[str, Any], prompts: int) -> str:
    header = ["", "passes", "positions", "ppl, best", "ppl, all", "next word among them", "ms"]
    rows = []
    for row in found["rows"]:
        cells = [number(row.get(name)) for name in ("passes", "positions", "best", "mean")]
        covered = f"{row['covered']:.0%}" if "covered" in row else "-"
        rows.append([row["name"], *cells, covered, number(1000 * row["seconds"])])
    what = f"Three completions of {found['new']} tokens after {found['prefix']}, {prompts} prompts"
    return f"{what} (perplexities: geometric means under the model)\n{table(header, rows)}"


def _ratios_of_nodes(found: Mapping[str, Any]) -> list[tuple[str, float]]:
    at = {(row["temperature"], row["k"]): row for row in found["rows"]}
    return [
        ("RSD over independent siblings, k=4, T=0.3", at[0.3, 4]["rsd"] / at[0.3, 4]["recursive"]),
        ("RSD over independent siblings, k=4, T=0.6", at[0.6, 4]["rsd"] / at[0.6, 4]["recursive"]),
        ("K-SEQ over one draft, k=4, T=1", at[1.0, 4]["kseq"] / at[1.0, 4]["single"]),
        ("K-SEQ over the optimum, k=4, T=1", at[1.0, 4]["kseq"] / at[1.0, 4]["optimum"]),
        ("K-SEQ over the optimum, the least at any position", min(row["least_share"] for row in at.values())),
    ]


def _ratios_of_trees(found: Mapping[str, Any]) -> list[tuple[str, float]]:
    chains = max(row["block_efficiency"] for row in found["rows"] if row["family"] == "speculative")
    trees = max(row["block_efficiency"] for row in found["rows"] if row["family"] == "rsd")
    return [("best RSD tree over the best chain, 14 nodes, T=0.3", trees / chains)]


def _ratios_of_tables(found: Mapping[str, Any]) -> list[tuple[str, float]]:
    at = {(row["method"], row["set"]): row["tokens_per_pass"] for row in found["rows"]}
    ppd = mean(value for (method, _), value in at.items() if method.startswith("ppd"))
    static, adaptive, primed, lookup = (
        at[method, "code"]
        for method in ("aded:prime_prompt=0,update=off", "aded:prime_prompt=0", "aded", "lookup:tokens=16")
    )
    return [
        ("PPD, tokens a pass over what its plan predicts, mean of the sets", ppd / found["predicted"]),
        ("ADED over its table alone, code", adaptive / static),
        ("ADED that has read the prompt over lookup, code", primed / lookup),
    ]


def _ratios_of_superposed(found: Mapping[str, Any]) -> list[tuple[str, float]]:
    rows = {row["name"]: row for row in found["rows"]}
    ours, nucleus = rows["superposed, not ranked again"], rows["nucleus, three samples"]
    return [
        ("superposed positions over three nucleus samples", ours["positions"] / nucleus["positions"]),
        ("best superposed draft's perplexity over nucleus's", rows["superposed"]["best"] / nucleus["best"]),
        ("three sequential samples over superposed, time", nucleus["seconds"] / ours["seconds"]),
    ]


RATIOS = {
    "nodes": _ratios_of_nodes,
    "trees": _ratios_of_trees,
    "tables": _ratios_of_tables,
    "superposed": _ratios_of_superposed,
}


def _command(found: Mapping[str, Any]) -> str:
    parts = ",".join(part for part in RATIOS if part in found)
    return "outlay bench drafts" + ("" if parts == ",".join(RATIOS) else f" --parts {parts}")


TABLES = {"report": lambda found: console(_command(found), report(found))}
