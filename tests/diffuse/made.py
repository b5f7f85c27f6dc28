"""Proposals made by hand, for rules that are tested without a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from outlay.diffuse.learn2pd import CommitFilter
from outlay.diffuse.proposals import BlockSoFar, Chosen, Proposals


def proposals(
    confidence: Sequence[float],
    filled: Sequence[int] = (),
    *,
    block: int | None = None,
    history: Sequence[float] = (),
    quotas: Sequence[int] = (),
    **changes: object,
) -> Proposals:
    """Proposals of a token 0 with these probabilities, the rest spread over seven others; some positions are filled."""
    c = np.array(confidence, dtype=np.float64)
    probs = torch.cat([torch.tensor(c)[:, None], ((1 - torch.tensor(c)) / 7)[:, None].expand(-1, 7)], 1)
    made = {
        "positions": np.arange(len(c)),
        "masked": ~np.isin(np.arange(len(c)), filled),
        "tokens": np.zeros(len(c), dtype=np.int64),
        "logprobs": np.log(c),
        "confidence": c,
        "logits": probs.clamp_min(1e-30).log().float(),
        "block": BlockSoFar(0, block or len(c), quotas=quotas, filled=list(history)),
        "random": lambda position: (position * 7 + 3) % 10 / 10,
    }
    return Proposals(**(made | changes))  # type: ignore[arg-type]


def places(chosen: Chosen) -> list[int]:
    """The positions that a rule chose."""
    return np.flatnonzero(chosen).tolist()


def random_case(rng: np.random.Generator, length: int = 12) -> Proposals:
    """Proposals of random confidences, some of which are those of thresholds, with some positions filled."""
    confidence = rng.choice(np.concatenate([rng.uniform(0.15, 1, 8), [0.9, 0.75]]), length)
    filled = np.flatnonzero(rng.random(length) < 0.3)
    if len(filled) == length:
        filled = filled[1:]
    return proposals(confidence, filled, block=length)


def threshold_filter(tau: float, block: int, **changes: object) -> CommitFilter:
    """The commit filter that accepts what a threshold does: a score above a half is a confidence above `tau`."""
    steep = 1e5
    layer = steep * torch.eye(block), torch.full((block,), -steep * tau)
    return CommitFilter(**({"layers": (layer,), "accept": 0.5} | changes))  # type: ignore[arg-type]
