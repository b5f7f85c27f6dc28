"""The picture of captions under cache policies: recall over bytes, and which tokens attend, by layer and input."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from outlay.bench.cache.glyphs import EVICT
from outlay.compare.plots import COLOURS, DPI, RC_PARAMS, SHAPES
from outlay.problems.glyphs import CELL, GRID, GlyphWorld

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

HIDDEN = 0.25  # brightness of what does not attend


def write_plot(found: Mapping[str, Any], file: Path) -> None:
    """Writes the picture of what `glyphs.measured` returned, as the file's ending says: .png or .svg."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC_PARAMS):
        figure = Figure(figsize=(8, 3.2 + 1.45 * len(found["shown"])), layout="constrained")
        parts = figure.subfigures(2, 1, height_ratios=[3, 1.45 * len(found["shown"])], squeeze=False)
        recalls, shares = parts[0, 0].subplots(1, 2, width_ratios=[3, 2])
        _recall(recalls, found)
        _shares(shares, found)
        _scenes(parts[1, 0], found)
        figure.savefig(file, dpi=DPI, metadata={"Date": None} if file.suffix == ".svg" else None)


def _recall(axes: Axes, found: Mapping[str, Any]) -> None:
    """Recall over the bytes held, scales included, a line for each way and a point for each tau."""
    rows = {row["name"]: row for row in found["captions"]}
    for place, (line, names) in enumerate(found["lines"].items()):
        x, y = [rows[name]["with_scales"] for name in names], [100 * rows[name]["recall"] for name in names]
        axes.plot(x, y, marker=SHAPES[place], color=COLOURS[place], label=line)
        if line == EVICT:  # whose points lie farthest apart
            for name, at, recall in zip(names, x, y, strict=True):
                label = name.rpartition(", ")[2]
                axes.annotate(label, (at, recall), (2, -10), textcoords="offset points", fontsize=7)
    axes.axhline(100 * rows["dense"]["recall"], color="grey", linewidth=1, linestyle=":", label="dense")
    axes.set_xlabel("bytes held, scales included, over 16 bits (labels: tau)")
    axes.set_ylabel("recall, %")
    axes.legend(frameon=False)


def _shares(axes: Axes, found: Mapping[str, Any]) -> None:
    """The share of tokens that attend, layers by objects of a scene."""
    groups = found["attending"]
    values = np.array([group["layers"] for group in groups])
    image = axes.imshow(values, cmap="viridis", aspect="auto", origin="lower")
    for (row, column), value in np.ndenumerate(values):
        light = value < (values.min() + values.max()) / 2
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color="w" if light else "k")
    axes.set_xticks(range(values.shape[1]))
    axes.set_yticks(range(len(groups)), [f"{group['objects']}{'+' if group is groups[-1] else ''}" for group in groups])
    axes.set_xlabel("layer")
    axes.set_ylabel("objects of the scene")
    axes.set_title("tokens that attend at 0.975", fontsize=9)
    axes.figure.colorbar(image, ax=axes)


def _scenes(figure: SubFigure, found: Mapping[str, Any]) -> None:
    """Scenes with their glyphs framed, and beside each its visual tokens that attend; the others are dark."""
    from matplotlib.patches import Rectangle

    world, shown = GlyphWorld(found["settings"]["kind"]), found["shown"]
    layers = len(shown[0]["attending"])
    grid = figure.subplots(len(shown), layers + 1, squeeze=False)
    for row, each in zip(grid, shown, strict=True):
        (scene,) = world.scenes(1, 0, each["number"])
        for place, axes in enumerate(row):
            image = scene.image / 255
            if place:
                image = image * _mask(each["attending"][place - 1], found["across"], len(image))[..., None]
            axes.imshow(image)
            axes.set_axis_off()
            for cell in scene.cells:
                at = (CELL * (cell % GRID) - 0.5, CELL * (cell // GRID) - 0.5)
                axes.add_patch(Rectangle(at, CELL, CELL, fill=False, edgecolor="w", linewidth=0.6))
            if place:
                axes.set_title(f"layer {place - 1}", fontsize=7)
        row[0].set_title(textwrap.fill(scene.caption, 26), fontsize=6)


def _mask(attending: list[int], across: int, side: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns the brightness of each pixel, [side, side], of an image of `across` visual tokens a side."""
    cells = np.full(across * across, HIDDEN)
    cells[attending] = 1.0
    return np.kron(cells.reshape(across, across), np.ones((side // across, side // across)))
