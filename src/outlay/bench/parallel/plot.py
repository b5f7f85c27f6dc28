"""Scores over tokens a pass: a picture for each task, a line for each kind of rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outlay.compare.plots import COLOURS, DPI, RC_PARAMS, SHAPES

COLUMNS = 5


def write_curves(points: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Writes the curves of all tasks, as the file's ending says: .png or .svg."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(point["task"] for point in points))
    kinds = list(dict.fromkeys(_line(point) for point in points))
    rows = -(-len(tasks) // COLUMNS)
    with matplotlib.rc_context(RC_PARAMS):
        figure = Figure(figsize=(2.1 * min(COLUMNS, len(tasks)) + 1.5, 1.9 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, min(COLUMNS, len(tasks)), sharex=True, sharey=True, squeeze=False)
        for axes, task in zip(grid.flat, tasks, strict=False):
            axes.set_title(task, fontsize=8)
            for place, kind in enumerate(kinds):
                of_kind = [point for point in points if point["task"] == task and _line(point) == kind]
                over = sorted((point["tokens_per_pass"], 100 * point["score"]) for point in of_kind)
                x, y = [at for at, _ in over], [score for _, score in over]
                shape, colour = SHAPES[place % len(SHAPES)], COLOURS[place % len(COLOURS)]
                axes.plot(x, y, marker=shape, markersize=3, linewidth=1, color=colour, label=kind)
        for axes in grid.flat[len(tasks) :]:
            axes.set_visible(False)
        figure.supxlabel("tokens a pass")
        figure.supylabel("right answers, %")
        figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
        figure.savefig(file, dpi=DPI, metadata={"Date": None} if file.suffix == ".svg" else None)


def _line(point: Mapping[str, Any]) -> str:
    name = str(point["way"] if point["kind"] == "method" else point["kind"])
    return name if point["block"] == "all" else f"{name}, blocks of {point['block']}"
