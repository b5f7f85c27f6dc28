"""Pictures with boxes, told apart by line and label, not by colour alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from outlay.vision.detect.detections import Detections

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
"""Okabe and Ito's, which people with any colour vision tell apart."""
DASHES = ((), (8, 4), (2, 3), (8, 3, 2, 3))
"""Lengths of strokes and gaps; a class has one of these and a colour."""


def draw(picture: npt.NDArray[np.uint8], found: Detections, path: Path) -> None:
    """Writes a picture with its boxes, as its suffix says.

    Args:
        picture: uint8 [height, width, 3].
        found: What was found in it.
        path: Where it goes.
    """
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(picture)
    canvas = ImageDraw.Draw(image)
    width = max(1, round(min(image.size) / 250))
    font = ImageFont.load_default(max(10, 5 * width + 6))
    for box, score, label in reversed(
        list(zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True))
    ):
        colour, dash = COLOURS[label % len(COLOURS)], DASHES[label // len(COLOURS) % len(DASHES)]
        left, top, right, bottom = box
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        for begin, end in pairwise(corners):
            _line(canvas, begin, end, colour, width, tuple(width * each for each in dash))
        text = f"{found.names[label]} {score:.2f}"
        bounds = canvas.textbbox((left, top), text, font=font)
        at = (left, max(0, top - (bounds[3] - bounds[1]) - 4))
        bounds = canvas.textbbox(at, text, font=font)
        canvas.rectangle((bounds[0] - 1, bounds[1] - 1, bounds[2] + 1, bounds[3] + 1), fill=colour)
        canvas.text(at, text, fill="white" if colour not in ("#f0e442", "#e69f00", "#56b4e9") else "black", font=font)
    image.save(path)


def _line(
    canvas: object, begin: tuple[float, float], end: tuple[float, float], colour: str, width: int, dash: tuple[int, ...]
) -> None:
    if not dash:
        canvas.line([begin, end], fill=colour, width=width)  # type: ignore[attr-defined]
        return
    start, stop = np.array(begin), np.array(end)
    length, at, place = float(np.linalg.norm(stop - start)), 0.0, 0
    while at < length:
        until = min(length, at + dash[place % len(dash)])
        if place % 2 == 0:
            points = [tuple(start + (stop - start) * each / length) for each in (at, until)]
            canvas.line(points, fill=colour, width=width)  # type: ignore[attr-defined]
        at, place = until, place + 1
