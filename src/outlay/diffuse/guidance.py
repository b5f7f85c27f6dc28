"""Classifier-free guidance: logits moved away from those without the prompt (Nie et al. 2025, LLaDA)."""

from __future__ import annotations

import torch
from torch import Tensor


def guided(logits: Tensor, unprompted: Tensor, weight: float) -> Tensor:
    """Returns unprompted + (weight + 1) (logits - unprompted), [n, vocab].

    A token that is impossible in either keeps its logit: the mask's stays -inf.

    Args:
        logits: Those of the canvas behind its prompt.
        unprompted: Those of the same canvas with each token of the prompt masked.
        weight: How far; 0 are the logits themselves.
    """
    possible = logits.isfinite() & unprompted.isfinite()
    return torch.where(possible, unprompted + (weight + 1) * (logits - unprompted), logits)
