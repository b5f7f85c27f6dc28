"""ETE's Pareto plot: rounds against broken phrases, a line for each number of explored positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outlay.compare.plots import COLOURS, DPI, RC_PARAMS, SHAPES


def write_pareto(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Writes the plot of the suite's part "pareto", as the file's ending says: .png or .svg."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault(row["rule"].partition("explore=")[2].partition(",")[0], []).append(row)
    with matplotlib.rc_context(RC_PARAMS):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.subplots()
        for place, (explored, points) in enumerate(lines.items()):
            x, y = [row["rounds"] for row in points], [100 * row["broken"] for row in points]
            axes.plot(x, y, marker=SHAPES[place], color=COLOURS[place], label=f"{explored} explored a round")
            for row, at, broken in zip(points, x, y, strict=True):
                axes.annotate(
                    row["rule"].rpartition("=")[2], (at, broken), (3, 3), textcoords="offset points", fontsize=7
                )
        axes.set_xlabel("rounds of 128 letters (labels: threshold)")
        axes.set_ylabel("broken phrases, %")
        axes.set_xlim(left=0)
        axes.legend(frameon=False)
        figure.savefig(file, dpi=DPI, metadata={"Date": None} if file.suffix == ".svg" else None)
