"""The plot of the shrink suite: perplexity over bits a weight, a line for each family of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outlay.compare.plots import COLOURS, DPI, RC_PARAMS, SHAPES


def write_plot(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Writes the plot, as the file's ending says: .png or .svg."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: float(row["bits"])):
        lines.setdefault(row["method"].partition(":")[0], []).append(row)
    with matplotlib.rc_context(RC_PARAMS):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.subplots()
        for place, (name, points) in enumerate(lines.items()):
            ratios = [next(iter(row["texts"].values()))["ratio"][0] for row in points]
            colour, shape = COLOURS[place % len(COLOURS)], SHAPES[place % len(SHAPES)]
            axes.scatter([row["bits"] for row in points], ratios, marker=shape, color=colour, label=name)
            for row, ratio in zip(points, ratios, strict=True):
                label = row["method"].partition(":")[2]
                axes.annotate(label, (row["bits"], ratio), (3, 3), textcoords="offset points", fontsize=6)
        axes.set_yscale("log")
        axes.set_xlabel("bits a weight of the shrunk matrices")
        axes.set_ylabel("perplexity over the original's")
        axes.legend(frameon=False)
        figure.savefig(file, dpi=DPI, metadata={"Date": None} if file.suffix == ".svg" else None)
