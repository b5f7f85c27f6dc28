"""One-to-one matching of queries with boxes, and the union of the layers' matches.

DEIMv2 (Huang et al. 2025) matches as DETR does, by the Hungarian algorithm, on cost of class, distance and overlap;
late in a training only the score of the right class times IoU^4 counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from outlay.errors import UsageError
from outlay.vision.detect.boxes import corners, overlap

CLASS_COST, DISTANCE_COST, OVERLAP_COST = 2.0, 5.0, 2.0
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
LATE_POWER = 4.0
"""Of IoU in the late cost, iou_order_alpha."""


@dataclass(frozen=True)
class Targets:
    """The boxes of a batch's pictures, one picture's after another's."""

    boxes: Tensor
    """float32 [total, 4], centre and size in shares of the picture."""
    labels: Tensor
    """int64 [total]."""
    counts: tuple[int, ...]
    """Boxes of each picture."""

    @property
    def starts(self) -> list[int]:
        """Where each picture's boxes begin."""
        return list(accumulate(self.counts, initial=0))[:-1]

    @staticmethod
    def of(boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Targets:
        """Returns targets of [n, 4] and [n] for each picture."""
        return Targets(
            torch.cat([each.reshape(-1, 4) for each in boxes]), torch.cat(list(labels)), tuple(map(len, labels))
        )

    def padded(self) -> tuple[Tensor, Tensor]:
        """Returns boxes [pictures, most, 4] and labels [pictures, most]; places behind a picture's own are zeros."""
        most = max(1, *self.counts)
        boxes = self.boxes.new_zeros(len(self.counts), most, 4)
        labels = self.labels.new_zeros(len(self.counts), most)
        for place, (start, count) in enumerate(zip(self.starts, self.counts, strict=True)):
            boxes[place, :count] = self.boxes[start : start + count]
            labels[place, :count] = self.labels[start : start + count]
        return boxes, labels


class Match(NamedTuple):
    """Which queries answer for which boxes; three int64 [matches]."""

    pictures: Tensor
    queries: Tensor
    boxes: Tensor
    """Places in `Targets.boxes`."""


@torch.no_grad()
def costs(logits: Tensor, boxes: Tensor, targets: Targets, *, late: bool = False) -> Tensor:
    """Returns what it costs to let each query answer for each box of its picture, [pictures, queries, most].

    Args:
        logits: [pictures, queries, classes].
        boxes: [pictures, queries, 4], centre and size.
        targets: The boxes; columns behind a picture's own mean nothing.
        late: Whether the late cost is wanted, -score * IoU^4.
    """
    wanted, labels = targets.padded()
    scores = logits.sigmoid().gather(2, labels[:, None].expand(-1, logits.shape[1], -1))
    iou, giou = overlap(corners(boxes)[:, :, None], corners(wanted)[:, None])
    if late:
        return -scores * iou**LATE_POWER
    absent = (1 - FOCAL_ALPHA) * scores**FOCAL_GAMMA * -(1 - scores + 1e-8).log()
    present = FOCAL_ALPHA * (1 - scores) ** FOCAL_GAMMA * -(scores + 1e-8).log()
    distance = (boxes[:, :, None] - wanted[:, None]).abs().sum(-1)
    return CLASS_COST * (present - absent) + DISTANCE_COST * distance - OVERLAP_COST * giou


def match(logits: Tensor, boxes: Tensor, targets: Targets, *, late: bool = False) -> Match:
    """Returns the cheapest matching in which every box has a query of its own, picture by picture.

    Raises:
        UsageError: Where a picture has more boxes than there are queries.
    """
    from scipy.optimize import linear_sum_assignment

    if max(targets.counts) > logits.shape[1]:
        raise UsageError(
            f"a picture has {max(targets.counts)} boxes, and {logits.shape[1]} queries can't answer for all of them; "
            "give more queries"
        )
    every = costs(logits, boxes, targets, late=late).cpu().double().numpy()
    found: list[tuple[int, int, int]] = []
    for picture, (start, count) in enumerate(zip(targets.starts, targets.counts, strict=True)):
        rows, columns = linear_sum_assignment(every[picture, :, :count])
        found += [(picture, int(row), start + int(column)) for row, column in zip(rows, columns, strict=True)]
    return Match(*torch.tensor(found, dtype=torch.int64).reshape(-1, 3).T)


def union(matches: Sequence[Match]) -> Match:
    """Returns each query that any of the matches has, with the box that most of them give it (the first of equals)."""
    every = torch.cat([torch.stack(each, 1) for each in matches])
    pairs, votes = every.unique(dim=0, return_counts=True)
    chosen: dict[tuple[int, int], int] = {}
    for place in votes.argsort(descending=True, stable=True).tolist():
        picture, query, box = pairs[place].tolist()
        chosen.setdefault((picture, query), box)
    rows = [(*key, box) for key, box in chosen.items()]
    return Match(*torch.tensor(rows, dtype=torch.int64).reshape(-1, 3).T)
