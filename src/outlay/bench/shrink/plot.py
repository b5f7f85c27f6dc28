"""The plot of the shrink suite: perplexity over bits a weight, points of each family of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outlay.compare.plots import COLOURS, DPI, RC_PARAMS, SHAPES

WORST = 15.0
"""The largest ratio that has a point; methods that lose more are named in words."""
TICKS = (1, 1.1, 1.25, 1.5, 2, 3, 5, 10)


def write_plot(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Writes the plot, as the file's ending says: .png or .svg."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: float(row["bits"])):
        if _ratio(row) <= WORST:
            lines.setdefault(row["method"].partition(":")[0], []).append(row)
    lost = [f"{row['method'].partition(',')[0]} {_ratio(row):.0f}" for row in rows if _ratio(row) > WORST]
    with matplotlib.rc_context(RC_PARAMS):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for place, (name, points) in enumerate(lines.items()):
            bits, ratios = [row["bits"] for row in points], [_ratio(row) for row in points]
            colour, shape = COLOURS[place % len(COLOURS)], SHAPES[place % len(SHAPES)]
            axes.plot(bits, ratios, marker=shape, color=colour, label=name, linewidth=0.8)
            labels: dict[tuple[float, float], list[str]] = {}
            for row, ratio in zip(points, ratios, strict=True):
                labels.setdefault((row["bits"], ratio), []).append(row["method"].partition(":")[2].partition(",")[0])
            for point, names in labels.items():
                text = "\n".join(names)
                beside = (
                    4,
                    4 if place % 2 else -9 * len(names),
                )  # neighbours in the legend keep out of each other's way
                axes.annotate(text, point, beside, textcoords="offset points", fontsize=6, color=colour)
        axes.margins(x=0.12)
        axes.set_yscale("log")
        axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(
            "bits a weight of the shrunk matrices" + (f"\nbeyond the plot: {', '.join(lost)}" if lost else "")
        )
        axes.set_ylabel("perplexity over the original's")
        axes.legend(frameon=False)
        figure.savefig(file, dpi=DPI, metadata={"Date": None} if file.suffix == ".svg" else None)


def _ratio(row: Mapping[str, Any]) -> float:
    """The perplexity on the first text over the original's."""
    return float(next(iter(row["texts"].values()))["ratio"][0])
