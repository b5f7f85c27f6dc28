"""Threshold decoding: a round fills every position of the block whose token is probable enough (Wu et al. 2025,
Fast-dLLM, arXiv 2505.22618).

Where n positions each have a token of probability above 1 - eps and (n + 1) eps <= 1, the most probable tokens of the
marginals are those of the joint distribution (Theorem 1), so a high threshold writes what one token a round writes. It
is approximate: what is filled in one round is drawn from independent marginals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outlay.diffuse.proposals import Chosen, Proposals
from outlay.diffuse.rule import COUNTS, CommitRule
from outlay.engine.method import About
from outlay.errors import UsageError


@dataclass(frozen=True)
class Threshold(CommitRule):
    """Fills what is at least as confident as a threshold, and always the most confident position of the block."""

    tau: float = 0.9
    """The confidence from which a position is filled; above 1, one token a round."""

    about: ClassVar[About] = About(
        name="threshold",
        summary="in each round all positions above a confidence",
        paper="Wu et al. 2025, Fast-dLLM",
        family="diffusion",
        spends="a pass a round",
        saves="rounds, where many positions are certain at once",
        exact=False,
        counts=COUNTS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau > 0:
            raise UsageError(f"tau must be above 0, not {self.tau}")

    def select(self, proposals: Proposals) -> Chosen:
        eligible = proposals.eligible
        certain = eligible & (proposals.confidence >= self.tau)
        return certain | proposals.best(proposals.confidence, eligible)
