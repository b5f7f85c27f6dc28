"""First-hitting sampling: a round fills one position, chosen at random (Zheng et al. 2024; Sahoo et al. 2024).

It is the limit of ancestral sampling in which each reveal has a round of its own, and the oracle of exactness: since
the choice doesn't depend on the tokens, its texts at temperature 1 are distributed as the model's own, where the
model's marginals are those of one distribution. Exact in that sense; no faster than one token a pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from outlay.diffuse.proposals import Chosen, Proposals
from outlay.diffuse.rule import COUNTS, CommitRule
from outlay.engine.method import About


@dataclass(frozen=True)
class FirstHitting(CommitRule):
    """Fills one random position of the block in each round."""

    about: ClassVar[About] = About(
        name="first_hitting",
        summary="one random position a round, the oracle of exactness",
        paper="Zheng et al. 2024",
        family="diffusion",
        spends="a pass a token",
        saves="nothing",
        exact=True,
        counts=COUNTS,
    )

    def select(self, proposals: Proposals) -> Chosen:
        drawn = np.array([proposals.random(int(position)) for position in proposals.positions])
        return proposals.best(drawn, proposals.eligible)
