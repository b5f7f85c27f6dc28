"""Plots for papers, as PNG and SVG, where matplotlib is installed (`pip install 'outlay[plots]'`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.compare.results import GAINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart, with shapes for those who print in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
SHAPES = "osD^vPX*"
DPI = 200
RC_PARAMS: dict[Any, Any] = {
    "svg.hashsalt": "outlay", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


def available() -> bool:
    """Tells whether plots can be made."""
    return importlib.util.find_spec("matplotlib") is not None


def write_plots(
    results: Mapping[str, Any],
    folder: Path,
    costs: Mapping[str, str],
    speed: tuple[str, str],
) -> None:
    """Writes `speed.png` and `.svg`, and where there is a quality `pareto.png` and `.svg`, into `folder`.

    Args:
        results: Of a comparison.
        folder: Where they go.
        costs: The entries that quality is drawn against, in words.
        speed: The entry that is a rate, in words.
    """
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(RC_PARAMS):
        ran = [(index, contender) for index, contender in enumerate(results["contenders"]) if contender["entries"]]
        if ran:
            _save(_speed(ran, *speed, results["manifest"].get("noun", "prompt")), folder / "speed")
        rated = [(index, contender) for index, contender in ran if contender["quality"] is not None]
        if rated:
            _save(_pareto(rated, results["manifest"]["metric"], costs, speed[0]), folder / "pareto")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path.with_suffix(".png"), dpi=DPI)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _speed(ran: Sequence[tuple[int, Mapping[str, Any]]], entry: str, told: str, noun: str) -> Figure:
    """A row for each contender: the median of the rate, with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 0.9 + 0.28 * len(ran)), layout="constrained")
    axes = figure.subplots()
    for row, (index, contender) in enumerate(ran):
        _point(axes, index, contender["entries"][entry], None, at=row)
    axes.set_yticks(range(len(ran)), [contender["label"] for _, contender in ran])
    axes.set_ylim(len(ran) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{told} (median over the {noun}s, 95 % interval)")
    axes.grid(axis="x", alpha=0.3)
    return figure


def _pareto(
    rated: Sequence[tuple[int, Mapping[str, Any]]], metric: str, known: Mapping[str, str], speed: str
) -> Figure:
    """Quality against cost, a panel for each cost in which the contenders differ, the frontier drawn."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    costs = [cost for cost in known if len({c["entries"].get(cost, {}).get("median") for _, c in rated}) > 1]
    costs = costs or [speed]
    width = max(6.4, 1.2 + 2.7 * len(costs))
    columns = max(1, int(width / (0.6 + 0.085 * max(len(contender["label"]) for _, contender in rated))))  # inches
    figure = Figure(figsize=(width, 3.2 + 0.18 * -(-len(rated) // columns)), layout="constrained")
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, cost in zip(panels, costs, strict=True):
        for index, contender in rated:
            _point(axes, index, contender["entries"][cost], contender["quality"], label=contender["label"])
        _draw_frontier(axes, cost, [contender for _, contender in rated])
        amounts = [contender["entries"][cost]["median"] for _, contender in rated]
        if min(amounts) > 0 and max(amounts) > 10 * min(amounts):
            axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.set_xlabel(known.get(cost, cost.replace("_", " ")) + (" (more is better)" if cost in GAINS else ""))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"quality: {metric.partition(':')[0]} (mean, 95 % interval)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _point(
    axes: Axes,
    index: int,
    cost: Mapping[str, float],
    quality: Mapping[str, float] | None,
    *,
    at: float = 0,
    label: str | None = None,
) -> None:
    """Draws a contender: its median cost with the interval, at its quality with the interval or at a given height."""
    height = at if quality is None else quality["mean"]
    spread = None if quality is None else [[height - quality["low"]], [quality["high"] - height]]
    axes.errorbar(
        cost["median"],
        height,
        xerr=[[cost["median"] - cost["low"]], [cost["high"] - cost["median"]]],
        yerr=spread,
        marker=SHAPES[(index + index // len(COLOURS)) % len(SHAPES)],
        color=COLOURS[index % len(COLOURS)],
        markersize=5,
        elinewidth=1,
        linestyle="none",
        label=label,
        zorder=3,
    )


def _draw_frontier(axes: Axes, cost: str, contenders: Sequence[Mapping[str, Any]]) -> None:
    points = sorted(
        (contender["entries"][cost]["median"], contender["quality"]["mean"])
        for contender in contenders
        if cost in contender["frontier"]
    )
    axes.plot(*zip(*points, strict=True), color="#888888", linewidth=1, linestyle="--", zorder=2)
