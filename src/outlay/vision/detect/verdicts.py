"""Which detections are right: hits, false alarms, and boxes that were missed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from outlay.vision.detect.boxes import overlap
from outlay.vision.detect.datasets import Example
from outlay.vision.detect.detections import Detections

ENOUGH = 0.5
"""IoU from which a detection of the right class is a hit, as for AP50."""


@dataclass(frozen=True)
class Verdicts:
    """What became of a picture's detections and of its boxes."""

    hits: tuple[bool, ...]
    """For each detection, whether it is the best one of a box."""
    found: tuple[bool, ...]
    """For each box of the picture, whether it was found."""


def verdicts(seen: Detections, example: Example, place: dict[int, int] | None = None) -> Verdicts:
    """Gives each detection, the most certain first, the box of its class that it covers best and no other has.

    Args:
        seen: The detections of the picture.
        example: The picture.
        place: The data set's place of each of the detector's classes; None: they are the same.
    """
    found = [False] * len(example.boxes)
    hits = []
    right, labels = torch.from_numpy(example.boxes), example.labels.tolist()
    for box, label in zip(seen.boxes, seen.labels.tolist(), strict=True):
        own = label if place is None else place.get(label, -1)
        iou = overlap(box, right)[0].tolist() if len(right) else []
        free = [at for at, each in enumerate(iou) if each >= ENOUGH and labels[at] == own and not found[at]]
        hits.append(bool(free))
        if free:
            found[max(free, key=lambda at: iou[at])] = True
    return Verdicts(tuple(hits), tuple(found))
