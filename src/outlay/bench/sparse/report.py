"""The report of the sparse suite: a table for each pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from outlay import machine
from outlay.tables import console, table

BASE = "srste"


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    recipe, dense = found["recipe"], found["dense"]
    about = (
        f"{recipe['layers']} layers of width {recipe['width']}, {recipe['steps']} steps, seeds 0 to {len(dense) - 1}; "
        f"dense: {_losses(dense)} nats a letter"
    )
    parts = [_part(pattern, runs, dense) for pattern, runs in found["patterns"].items()]
    return "\n\n".join([machine.heading(found["machine"]), about, *parts])


def excess_over(runs: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]],
                dense: Sequence[Mapping[str, Any]]) -> float:  # fmt: skip
    """Returns a recipe's mean loss above dense training, over that of another recipe."""
    return (_mean(runs, "loss") - _mean(dense, "loss")) / (_mean(base, "loss") - _mean(dense, "loss"))


def _part(pattern: str, recipes: Mapping[str, Any], dense: Sequence[Mapping[str, Any]]) -> str:
    base = recipes.get(BASE)
    header = ["", "nats a letter", "above dense", f"over {BASE}", "bytes over half", "FLOPs over dense", "grad noise"]
    rows = []
    for name, runs in recipes.items():
        if isinstance(runs, str):
            rows.append([name, runs])
            continue
        ratio = "-" if base is None or isinstance(base, str) else f"{excess_over(runs, base, dense):.2f}"
        above = _mean(runs, "loss") - _mean(dense, "loss")
        noise = mean(mean(run["noise"].values()) for run in runs)
        rows.append([
            name, _losses(runs), f"{above:.3f}", ratio, f"{_mean(runs, 'bytes'):.3f}",
            f"{_mean(runs, 'flops') / _mean(dense, 'flops'):.2f}", f"{noise:.1f}",
        ])  # fmt: skip
    return f"feed-forward layers {pattern}\n{table(header, rows)}"


def _losses(runs: Sequence[Mapping[str, Any]]) -> str:
    losses = [run["loss"] for run in runs]
    return f"{mean(losses):.3f}" + (f" ± {stdev(losses):.3f}" if len(losses) > 1 else "")


def _mean(runs: Sequence[Mapping[str, Any]], entry: str) -> float:
    return mean(run[entry] for run in runs)


def recipes(found: Mapping[str, Any]) -> str:
    """The report as the documentation shows it."""
    return console("outlay bench sparse", report(found))


TABLES = {"recipes": recipes}
