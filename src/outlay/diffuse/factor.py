"""Factor decoding: a round fills as many of the surest positions as their number allows (Wu et al. 2025, Fast-dLLM,
arXiv 2505.22618).

The n surest positions are filled where (n + 1) (1 - c_n) is below a factor, c_n being the confidence of the least sure
of them: at factor 1 the condition under which the most probable tokens of the marginals are those of the joint
distribution (Theorem 1). Such a round never commits a nat of information. Approximate, as all parallel rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from outlay.diffuse.proposals import Chosen, Proposals
from outlay.diffuse.rule import COUNTS, CommitRule
from outlay.engine.method import About
from outlay.errors import UsageError


@dataclass(frozen=True)
class Factor(CommitRule):
    """Fills the largest number n of positions, the surest first, whose last one is sure enough for n of them."""

    factor: float = 1.0
    """What (n + 1) (1 - confidence) has to be below."""

    about: ClassVar[About] = About(
        name="factor",
        summary="as many positions a round as their confidence allows together",
        paper="Wu et al. 2025, Fast-dLLM",
        family="diffusion",
        spends="a pass a round",
        saves="rounds, where many positions are certain at once",
        exact=False,
        counts=COUNTS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.factor > 0:
            raise UsageError(f"factor must be above 0, not {self.factor}")

    def select(self, proposals: Proposals) -> Chosen:
        eligible = proposals.eligible
        falling = -np.sort(-proposals.confidence[eligible])
        fits = np.flatnonzero((np.arange(len(falling)) + 2) * (1 - falling) < self.factor)
        return proposals.best(proposals.confidence, eligible, int(fits[-1]) + 1 if len(fits) else 1)
