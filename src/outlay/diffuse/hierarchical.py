"""Hierarchical decoding: a round fills the best position of every run of masks (Ma et al. 2025, dInfer,
arXiv 2510.08666).

A run is a maximal stretch of masked positions; filling one position of each spreads a round's tokens out, and splits
the runs as divide and conquer does. What is sure enough is filled beside it. Approximate.
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
class Hierarchical(CommitRule):
    """Fills the best position of each run of masks, where it is above a low threshold, and all above a high one."""

    tau: float = 0.9
    """The confidence from which any position is filled; above 1, one of each run alone."""

    low: float = 0.4
    """The confidence from which the best position of a run is filled."""

    about: ClassVar[About] = About(
        name="hierarchical",
        summary="the best position of every run of masks each round",
        paper="Ma et al. 2025, dInfer",
        family="diffusion",
        spends="a pass a round",
        saves="rounds, by tokens that lie apart",
        exact=False,
        counts=COUNTS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low <= self.tau:
            raise UsageError(f"low must be above 0 and at most tau, not {self.low} with tau {self.tau}")

    def select(self, proposals: Proposals) -> Chosen:
        eligible = proposals.eligible
        chosen = eligible & (proposals.confidence >= self.tau)
        for run in runs(proposals.positions, eligible):
            best = run[np.argmax(proposals.confidence[run])]
            chosen[best] |= proposals.confidence[best] >= self.low
        return chosen


def runs(positions: np.ndarray, eligible: Chosen) -> list[np.ndarray]:
    """Returns the places of each maximal stretch of eligible positions that follow each other."""
    places = np.flatnonzero(eligible)
    return np.split(places, np.flatnonzero(np.diff(positions[places]) > 1) + 1) if len(places) else []
