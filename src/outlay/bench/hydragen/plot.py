"""The picture of the hydragen suite: tokens a second and bytes held over the prefix, a line for each side and rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from outlay.compare.plots import COLOURS, DPI, RC_PARAMS, SHAPES

METRICS = {"tokens_per_second": (1, "tokens/s of decoding"), "held_bytes": (1e-6, "MB of keys and values held")}


def write_plot(found: Mapping[str, Any], file: Path) -> None:
    """Writes the picture of the suite's results, as the file's ending says: .png or .svg."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    sides = lines(found)
    with matplotlib.rc_context(RC_PARAMS):
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        for axes, (metric, (scale, said)) in zip(figure.subplots(1, 2), METRICS.items(), strict=True):
            for place, (name, points) in enumerate(sides.items()):
                known = [(prefix, scale * values[metric]) for prefix, values in points if metric in values]
                shape, colour = SHAPES[place % len(SHAPES)], COLOURS[place % len(COLOURS)]
                axes.plot([at for at, _ in known], [value for _, value in known], shape + "-", color=colour, label=name)
            axes.set_xlabel("tokens of the prefix")
            axes.set_ylabel(said)
            axes.set_yscale("log")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        figure.savefig(file, dpi=DPI, metadata={"Date": None} if file.suffix == ".svg" else None)


def lines(found: Mapping[str, Any]) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """Returns, of each side and number of texts, the medians over rounds of each metric by the prefix's length."""
    sides: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for each in found["values"]:
        rounds = [values for values in each["values"] if values] if each["task"] == "Texts" else []
        if rounds:
            middle = {metric: median(values[metric] for values in rounds) for metric in METRICS if metric in rounds[0]}
            sides.setdefault(f"{each['name']}, {each['rows']} texts", []).append((each["prefix"], middle))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in sides.items()}
