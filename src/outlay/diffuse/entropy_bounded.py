"""Entropy-bounded decoding: a round fills the positions of lowest entropy, up to a sum (Ben-Hamu et al. 2025,
arXiv 2505.24857).

The entropies of what is filled in one round bound how far their joint distribution is from the product of their
marginals, whatever the tokens are. Approximate, with a bound on the error of each round.
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
class EntropyBounded(CommitRule):
    """Fills the longest row of positions of lowest entropy whose sum stays below a bound."""

    gamma: float = 0.35
    """What the entropies of a round's positions have to stay below together, in nats."""

    about: ClassVar[About] = About(
        name="entropy_bounded",
        summary="positions of low entropy, up to a sum a round",
        paper="Ben-Hamu et al. 2025",
        family="diffusion",
        spends="a pass a round",
        saves="rounds, where many positions are certain at once",
        exact=False,
        counts=COUNTS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma > 0:
            raise UsageError(f"gamma must be above 0, not {self.gamma}")

    def select(self, proposals: Proposals) -> Chosen:
        eligible = proposals.eligible
        rising = np.sort(proposals.entropy[eligible]).cumsum()
        count = int((rising < self.gamma).sum())
        return proposals.best(-proposals.entropy, eligible, max(count, 1))
