"""DEIMv2's losses: MAL for scores, L1 and GIoU for boxes, FGL and DDF for the distributions of edges.

Each layer, the preliminary answer, the encoder's chosen places and the denoised queries have losses of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.train.detect.matching import Match, Targets, match, union
from outlay.vision.detect.boxes import corners, overlap
from outlay.vision.detect.decoder import BINS, Answer, edge_offsets

WEIGHTS: Mapping[str, float] = {"mal": 1.0, "bbox": 5.0, "giou": 2.0, "fgl": 0.15, "ddf": 1.5}
GAMMA = 1.5
"""Of MAL: the power of a target's IoU, and of a wrong score's weight."""
TEMPERATURE = 5.0
"""Of the distributions that DDF compares."""
REFERENCE_BATCH = 8
"""Pictures of a batch for which DDF's balance of matched and other queries was set."""


@dataclass(frozen=True)
class Denoised:
    """What the layers make of noisy boxes."""

    layers: Sequence[Answer]
    first: Answer
    match: Match
    groups: int


@dataclass(frozen=True)
class Predictions:
    """What all parts of a detector say of a batch in training."""

    encoder: Answer
    """The chosen places, with boxes from the encoder's head."""
    first: Answer
    """The first layer's preliminary answer."""
    layers: Sequence[Answer]
    denoised: Denoised | None = None


@dataclass(frozen=True)
class Terms:
    """Which losses a training has."""

    local: bool = True
    """Whether edges' distributions have losses, FGL and DDF."""
    union: bool = True
    """Whether losses of boxes and edges take the union of all layers' matches."""


def losses(
    said: Predictions, targets: Targets, up: Tensor, scale: Tensor, terms: Terms, *, late: bool = False
) -> dict[str, Tensor]:
    """Returns all losses, each times its weight.

    Args:
        said: The predictions.
        targets: The right boxes.
        up: u of the bins' offsets.
        scale: a of them, reg_scale.
        terms: Which losses there are.
        late: Whether queries are matched by the late cost.

    Returns:
        By name: the kind, then the part, as in "giou layer 2"; layers count from 1.
    """
    parts = {f"layer {place}": answer for place, answer in enumerate(said.layers, 1)}
    parts |= {"first": said.first, "encoder": said.encoder}
    matched = {name: match(answer.logits, answer.boxes, targets, late=late) for name, answer in parts.items()}
    shared = union(list(matched.values()))
    count, shared_count = max(1, sum(targets.counts)), max(1, len(shared.queries))
    table = edge_offsets(up, scale)
    found: dict[str, Tensor] = {}
    balance = (torch.tensor(1.0), torch.tensor(1.0))
    teacher = said.layers[-1]
    for name, answer in parts.items():
        own, of_boxes, amount = matched[name], matched[name], count
        if terms.union:
            of_boxes, amount = shared, shared_count
        found[f"mal {name}"] = mal(answer, targets, own) / count
        found |= _box_losses(answer, targets, of_boxes, amount, name)
        if terms.local and answer.edges is not None:
            found[f"fgl {name}"] = fgl(answer, targets, of_boxes, table, scale) / amount
            if answer is not teacher:
                distilled, balance = ddf(answer, teacher, targets, of_boxes)
                found[f"ddf {name}"] = distilled
    if said.denoised is not None:
        found |= _denoised_losses(said.denoised, targets, table, scale, terms, count, balance)
    return {name: loss * WEIGHTS[name.partition(" ")[0]] for name, loss in found.items()}


def _denoised_losses(
    said: Denoised,
    targets: Targets,
    table: Tensor,
    scale: Tensor,
    terms: Terms,
    count: int,
    balance: tuple[Tensor, Tensor],
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    amount, teacher = count * said.groups, said.layers[-1]
    parts = {f"denoised layer {place}": answer for place, answer in enumerate(said.layers, 1)}
    for name, answer in (parts | {"denoised first": said.first}).items():
        found[f"mal {name}"] = mal(answer, targets, said.match) / amount
        found |= _box_losses(answer, targets, said.match, amount, name)
        if terms.local and answer.edges is not None:
            found[f"fgl {name}"] = fgl(answer, targets, said.match, table, scale) / amount
            if answer is not teacher:
                found[f"ddf {name}"], _ = ddf(answer, teacher, targets, said.match, balance)
    return found


def _box_losses(answer: Answer, targets: Targets, matched: Match, amount: int, name: str) -> dict[str, Tensor]:
    boxes, wanted = answer.boxes[matched.pictures, matched.queries], targets.boxes[matched.boxes]
    _, giou = overlap(corners(boxes), corners(wanted))
    return {f"bbox {name}": (boxes - wanted).abs().sum() / amount, f"giou {name}": (1 - giou).sum() / amount}


def mal(answer: Answer, targets: Targets, matched: Match) -> Tensor:
    """Returns the Matchability-Aware Loss, summed (DEIM, Huang et al. 2025, eq. 3).

    A matched query's target for its class is IoU^gamma, with weight 1; every other target is 0, with weight
    score^gamma. So a matched score has no gradient where it is IoU^gamma.
    """
    logits = answer.logits
    wanted, weight = torch.zeros_like(logits), logits.detach().sigmoid() ** GAMMA
    place = (matched.pictures, matched.queries, targets.labels[matched.boxes])
    iou = _matched_iou(answer, targets, matched)
    wanted[place] = (iou**GAMMA).to(wanted.dtype)
    weight[place] = 1
    return F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")


def _matched_iou(answer: Answer, targets: Targets, matched: Match) -> Tensor:
    """Returns the overlap of matched queries with their boxes, without gradient, [matches]."""
    with torch.no_grad():
        boxes = answer.boxes[matched.pictures, matched.queries]
        return overlap(corners(boxes), corners(targets.boxes[matched.boxes]))[0]


def fgl(answer: Answer, targets: Targets, matched: Match, table: Tensor, scale: Tensor) -> Tensor:
    """Returns the Fine-Grained Localization loss, summed (D-FINE, Peng et al. 2024, eq. 6).

    The right offset of an edge lies between two bins; both have a cross-entropy, weighted by how near it is, and by
    the box's overlap.
    """
    assert answer.edges is not None
    assert answer.references is not None
    at = (matched.pictures, matched.queries)
    offsets = right_offsets(answer.references[at].detach(), targets.boxes[matched.boxes], scale)
    left, share = bins_of(offsets, table)
    logits = answer.edges[at].unflatten(-1, (4, BINS + 1)).log_softmax(-1)
    lower = -logits.gather(-1, left[..., None])[..., 0] * (1 - share)
    upper = -logits.gather(-1, left[..., None] + 1)[..., 0] * share
    return ((lower + upper) * _matched_iou(answer, targets, matched)[:, None]).sum()


def right_offsets(references: Tensor, boxes: Tensor, scale: Tensor) -> Tensor:
    """Returns how far the edges of references must move outwards to be those of boxes, [..., 4], in sizes over scale.

    It is what `outlay.vision.detect.decoder.moved_boxes` undoes. Edges are left, top, right, bottom.
    """
    low, high = corners(boxes).split(2, -1)
    centre, unit = references[..., :2], references[..., 2:] / scale + 1e-16
    return torch.cat([(centre - low) / unit, (high - centre) / unit], -1) - 0.5 * scale


def bins_of(offsets: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the bin below each offset, int64, and the share of the one above; beyond the ends an end has all."""
    left = (torch.searchsorted(table, offsets.contiguous(), right=True) - 1).clamp(0, BINS - 1)
    low, high = table[left], table[left + 1]
    return left, ((offsets - low) / (high - low)).clamp(0, 1)


def ddf(
    answer: Answer, teacher: Answer, targets: Targets, matched: Match, balance: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Returns the Decoupled Distillation Focal loss (D-FINE, Peng et al. 2024, eq. 8), and its balance.

    The last layer's distributions of edges teach an earlier layer's: matched queries weigh by their overlap, others by
    the teacher's score. The means of both groups are balanced by the roots of their counts.

    Args:
        answer: The earlier layer's.
        teacher: The last layer's; it gets no gradient.
        targets: The right boxes.
        matched: Which queries are matched.
        balance: The roots of the counts; by default those of `matched`.
    """
    assert answer.edges is not None
    assert teacher.edges is not None
    at = (matched.pictures, matched.queries)
    weight = teacher.logits.detach().sigmoid().amax(-1)
    weight[at] = _matched_iou(answer, targets, matched).to(weight.dtype)
    inside = torch.zeros_like(weight, dtype=torch.bool)
    inside[at] = True
    own, taught = ((each / TEMPERATURE).unflatten(-1, (4, BINS + 1)) for each in (answer.edges, teacher.edges.detach()))
    apart = F.kl_div(own.log_softmax(-1), taught.softmax(-1), reduction="none").sum(-1)
    apart = apart * TEMPERATURE**2 * weight[..., None]
    if balance is None:
        share = REFERENCE_BATCH / len(weight)
        balance = ((4 * inside.sum() * share).sqrt(), (4 * (~inside).sum() * share).sqrt())
    means = [apart[where].mean() if where.any() else apart.sum() * 0 for where in (inside, ~inside)]
    mixed = (means[0] * balance[0] + means[1] * balance[1]) / (balance[0] + balance[1])
    return mixed, balance
