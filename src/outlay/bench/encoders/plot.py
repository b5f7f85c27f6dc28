"""The coding rate by layer, before and after training, of the networks of digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outlay.compare.plots import COLOURS, DPI, RC_PARAMS, SHAPES


def write_rates(nets: Sequence[Mapping[str, Any]], eps2: str, file: Path) -> None:
    """Writes a picture of R^c by layer, as the file's ending says: .png or .svg.

    Args:
        nets: The rows of the suite's digits; those without rates are left out.
        eps2: The squared quantisation error of the rates that are drawn.
        file: Where the picture goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC_PARAMS):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.subplots()
        for place, net in enumerate(net for net in nets if net["after"] is not None):
            shape, colour = SHAPES[place % len(SHAPES)], COLOURS[place % len(COLOURS)]
            for when, dashes in (("before", "--"), ("after", "-")):
                rates = net[when][eps2]
                label = f"{net['name']}, {'new' if when == 'before' else 'trained'}"
                layers = range(1, len(rates) + 1)
                axes.plot(layers, rates, linestyle=dashes, marker=shape, color=colour, label=label)
                axes.set_xticks(layers)
        axes.set_xlabel("layer")
        axes.set_ylabel(f"coding rate R^c, nats (eps^2 = {eps2})")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, ncols=2, fontsize=8)
        figure.savefig(file, dpi=DPI, metadata={"Date": None} if file.suffix == ".svg" else None)
