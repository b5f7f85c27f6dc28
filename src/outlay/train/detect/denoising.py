"""Contrastive denoising (DINO, Zhang et al. 2022): queries that start at noisy boxes and must find the right ones.

Groups hold each box twice: near it, which must find it, and farther off, which must find nothing. No other query sees
them, and no group sees another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from outlay.train.detect.matching import Match, Targets
from outlay.vision.detect.boxes import centred, corners
from outlay.vision.detect.decoder import inverse_sigmoid

WRONG_LABELS = 0.25
"""Share of the labels that are drawn anew: half of label_noise_ratio."""
NOISE = 1.0
"""box_noise_scale: a corner moves by up to half of the box's size times this; of far ones by half to all of it."""


@dataclass(frozen=True)
class NoisyQueries:
    """What the decoder gets in front of its own queries."""

    contents: Tensor
    """[pictures, noisy, width]."""
    boxes: Tensor
    """[pictures, noisy, 4], before the sigmoid."""
    match: Match
    """The near ones with their boxes."""
    groups: int

    def mask(self, queries: int) -> Tensor:
        """Returns which queries don't see each other, bool [noisy + queries, noisy + queries]."""
        noisy = self.contents.shape[1]
        group = torch.arange(noisy, device=self.contents.device) // (noisy // self.groups)
        hidden = torch.zeros(noisy + queries, noisy + queries, dtype=torch.bool, device=self.contents.device)
        hidden[:noisy, :noisy] = group[:, None] != group
        hidden[noisy:, :noisy] = True
        return hidden


def noisy_queries(targets: Targets, embed: nn.Embedding, wanted: int, draw: torch.Generator) -> NoisyQueries | None:
    """Draws noisy queries.

    Args:
        targets: The right boxes.
        embed: Of the classes, and a last row for places that no box has.
        wanted: How many near ones there are, about, num_denoising; 0 for none.
        draw: What draws the noise.

    Returns:
        The queries; None where no picture of the batch has a box.
    """
    most, pictures, classes = max(targets.counts), len(targets.counts), embed.num_embeddings - 1
    if not most or not wanted:
        return None
    groups = max(1, wanted // most)
    boxes, labels = targets.padded()
    counts = torch.tensor(targets.counts)
    present = torch.arange(most) < counts[:, None]
    boxes = boxes.repeat(1, 2 * groups, 1)
    labels = labels.masked_fill(~present, classes).repeat(1, 2 * groups)
    there = present.repeat(1, 2 * groups)
    far = (torch.arange(2 * groups * most) // most % 2).float()[None, :, None]

    swapped = torch.rand(labels.shape, generator=draw) < WRONG_LABELS
    other = torch.randint(0, classes, labels.shape, generator=draw)
    labels = torch.where(swapped & there, other, labels)

    sign = torch.randint(0, 2, boxes.shape, generator=draw) * 2.0 - 1.0
    amount = torch.rand(boxes.shape, generator=draw) + far
    moved = corners(boxes) + sign * amount * boxes[..., 2:].repeat(1, 1, 2) * 0.5 * NOISE
    noisy = centred(moved.clamp(0, 1)).abs()  # corners that have passed each other still make a box

    place = torch.arange(groups)[:, None] * 2 * most + torch.arange(most)  # the near ones, [groups, most]
    rows = [
        torch.stack([torch.full((groups * count,), picture), place[:, :count].flatten(),
                     (start + torch.arange(count)).repeat(groups)], 1)
        for picture, (start, count) in enumerate(zip(targets.starts, targets.counts, strict=True))
    ]  # fmt: skip
    assert len(rows) == pictures
    return NoisyQueries(embed(labels), inverse_sigmoid(noisy), Match(*torch.cat(rows).T), groups)
