"""The report of the pictures suite: what ranks channels, what order and groups save, rates beside JPEG and WebP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlay import machine
from outlay.errors import UsageError
from outlay.tables import console, table


def report(found: Mapping[str, Any]) -> str:
    """Returns the report as text; `found` is what the suite writes as JSON."""
    channels = found["codec"]["latents"]
    header = ["score", "rank", *(f"{share} of {channels}" for share in _counts(channels))]
    ranks = [[row["score"], f"{row['rank']:.2f}", *map(_point, row["cuts"])] for row in found["ranks"]]
    own, drawn = found["pairing"]
    plain, fitted = found["stage_b"]
    whole, cut = (next(row for row in found["ranks"] if row["score"] == "prior")["cuts"][at] for at in (3, 2))
    lines = [
        f"a quarter of the channels cut off by prior: {cut[0] / whole[0] - 1:+.1%} bytes, {cut[1] - whole[1]:+.2f} dB",
        f"paired by filters: {own:.3f} bits to save a symbol of auxiliaries; at random {drawn:.3f}",
        f"predicted from cores: auxiliaries take {fitted:,} of {plain:,} bytes ({fitted / plain - 1:+.1%})",
    ]
    points = [
        [name, *(_point(point) for point in row), *[""] * (6 - len(row))] for name, row in found["points"].items()
    ]
    return "\n\n".join(
        (
            machine.heading(found["machine"]),
            "rank: Spearman's correlation with ablation; then bits a pixel and decibels with the first channels\n"
            + table(header, ranks),
            "\n".join(lines),
            "bits a pixel and decibels, the codec cut off at a quarter, half, three quarters, and whole\n"
            + table([""] * 7, points),
        )
    )


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draws decibels over bits a pixel.

    Raises:
        UsageError: Where matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UsageError("a plot needs an extra: pip install 'outlay[plots]'") from None
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    label = {"codec": f"{found['codec']['architecture']}, {found['codec']['latents']} channels, cut off"}
    for (name, points), marker in zip(found["points"].items(), "os^", strict=True):
        bits, decibels = zip(*points, strict=True)
        axes.plot(bits, decibels, marker=marker, label=label.get(name, name))
    axes.set_xlabel("bits a pixel")
    axes.set_ylabel("PSNR, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def _counts(channels: int) -> list[int]:
    return [round(share * channels) for share in (0.25, 0.5, 0.75, 1.0)]


def _point(point: list[float] | None) -> str:
    if point is None:
        return ""
    bits, decibels = point
    return f"{decibels:.1f} dB" if bits is None else f"{bits:.2f}: {decibels:.1f} dB"


TABLES = {"report": lambda found: console("outlay bench pictures", report(found))}
