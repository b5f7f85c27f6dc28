"""Boxes: their forms, and how far two of them agree."""

from __future__ import annotations

import torch
from torch import Tensor


def corners(boxes: Tensor) -> Tensor:
    """Returns left, top, right and bottom of boxes that are given by centre and size, [..., 4]; no size is below 0."""
    centre, size = boxes.split(2, -1)
    half = size.clamp_min(0) / 2
    return torch.cat([centre - half, centre + half], -1)


def centred(boxes: Tensor) -> Tensor:
    """Returns centre and size of boxes that are given by left, top, right and bottom, [..., 4]."""
    low, high = boxes.split(2, -1)
    return torch.cat([(low + high) / 2, high - low], -1)


def overlap(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the intersection over union, and its generalised form, of boxes that are given by their corners.

    GIoU (Rezatofighi et al. 2019) subtracts the share of the smallest box around both that neither covers.

    Args:
        one: [..., 4].
        other: [..., 4], whose shape goes with that of `one` by torch's rules.

    Returns:
        IoU from 0 to 1 and GIoU from -1 to 1, [...].
    """
    low, high = torch.max(one[..., :2], other[..., :2]), torch.min(one[..., 2:], other[..., 2:])
    shared = _product((high - low).clamp_min(0))
    union = _area(one) + _area(other) - shared
    iou = shared / union.clamp_min(torch.finfo(union.dtype).tiny)
    around = torch.max(one[..., 2:], other[..., 2:]) - torch.min(one[..., :2], other[..., :2])
    hull = _product(around.clamp_min(0))
    return iou, iou - (hull - union) / hull.clamp_min(torch.finfo(union.dtype).tiny)


def unsuppressed(boxes: Tensor, labels: Tensor, most: float) -> list[int]:
    """Returns the places of the boxes that greedy suppression leaves.

    Args:
        boxes: [count, 4], corners, the most certain first.
        labels: [count]; a box suppresses those of its class alone.
        most: IoU with a box before it that is left, above which a box is suppressed.
    """
    left: list[int] = []
    for place, label in enumerate(labels.tolist()):
        same = [other for other in left if int(labels[other]) == label]
        if not same or float(overlap(boxes[place], boxes[same])[0].max()) <= most:
            left.append(place)
    return left


def _area(boxes: Tensor) -> Tensor:
    return _product(boxes[..., 2:] - boxes[..., :2])


def _product(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]
