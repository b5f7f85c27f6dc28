"""The learning rate over a training."""

from __future__ import annotations

import math

LAST_SHARE = 0.1  # share of the full rate at the last step


def schedule(step: int, steps: int, warmup: float) -> float:
    """Returns the share of the learning rate at a step: a linear rise, then half a cosine down to `LAST_SHARE`.

    Args:
        step: The step, from 0.
        steps: Steps of the whole training.
        warmup: Share of the steps that the rise takes.
    """
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return LAST_SHARE + (1 - LAST_SHARE) / 2 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
