"""What end tokens do to a canvas: models that fill masks predict a text's length by filling its rest with them."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from outlay.diffuse.proposals import Chosen, Integers
from outlay.tree.canvas import Canvas

EndsName = Literal["stop", "block", "keep", "last", "never", "cut"]
HOLDS = ("block", "keep")  # policies with which the text goes on behind an end token that is written


def without_ends(logits: Tensor, ends: Sequence[int]) -> Tensor:
    """Returns logits [n, vocab] in which end tokens are -inf, but for rows that have no other token."""
    banned = logits.clone()
    banned[:, list(ends)] = -torch.inf
    possible = banned.amax(-1, keepdim=True) > -torch.inf
    return torch.where(possible, banned, logits)


def late_ends(tokens: Integers, masked: Chosen, in_block: Chosen, ends: Set[int]) -> Chosen:
    """Returns the masked positions that wait because an end token is proposed there, [n].

    Those of the block wait as long as anything else is masked in it; those behind it always do.

    Args:
        tokens: The proposed tokens, [n].
        masked: Which positions are masked, [n].
        in_block: Which positions belong to the block, [n].
        ends: The end tokens.
    """
    is_end = masked & np.isin(tokens, list(ends))
    others = masked & in_block & ~is_end
    return is_end if others.any() else is_end & ~in_block


def end_of_canvas(
    canvas: Canvas,
    filled: Sequence[int],
    positions: Sequence[int],
    logits: Tensor,
    ends: Set[int],
    floor: float = 0.0,
) -> int | None:
    """Returns behind which position a canvas is cut (Bao et al. 2025, Learn2PD, end-of-text prediction).

    It is the first position that this round has filled with an end token; where it has filled none, the masked position
    whose most probable token is an end, of those the one of highest probability.

    Args:
        canvas: The canvas after the round.
        filled: Positions that the round has filled.
        positions: Positions that the round's pass has computed, [n].
        logits: Their logits, [n, vocab].
        ends: The end tokens.
        floor: The probability that an end has to have where the round has filled none.

    Returns:
        The first position that is dropped; None where nothing is.
    """
    written = [position for position in filled if canvas.token(position) in ends]
    if written:
        return min(written) + 1
    if not len(positions):
        return None
    logprobs, tokens = logits.log_softmax(-1).max(-1)
    likely = [
        (logprob, -position)
        for position, token, logprob in zip(positions, tokens.tolist(), logprobs.tolist(), strict=True)
        if token in ends and math.exp(logprob) >= floor and position < canvas.end and canvas.is_masked(position)
    ]
    return 1 - max(likely)[1] if likely else None
