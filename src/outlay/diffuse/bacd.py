"""BACD: a threshold that follows what was accepted in the block, within bounds (Lu et al. 2026, TDAR, arXiv
2602.09555).

A block's first round accepts what is as confident as its best position, the later ones what is as confident as the mean
of what the block has accepted so far, both clamped to bounds: easy stretches are not held up, and hard ones not let
through. Approximate; equal bounds are a fixed threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from outlay.diffuse.proposals import Chosen, Proposals
from outlay.diffuse.rule import COUNTS, CommitRule, Round
from outlay.engine.canvas_run import CanvasRun
from outlay.engine.method import About
from outlay.errors import UsageError


@dataclass(frozen=True)
class BACD(CommitRule):
    """Fills what is as confident as the mean of what was filled in the block, within bounds."""

    lower: float = 0.6
    """The threshold at least, which bounds errors."""

    upper: float = 0.9
    """The threshold at most, so that an easy block doesn't demand more and more."""

    about: ClassVar[About] = About(
        name="bacd",
        summary="positions as sure as the block's were so far, within bounds",
        paper="Lu et al. 2026, TDAR",
        family="diffusion",
        spends="a pass a round",
        saves="rounds, without tuning a threshold",
        exact=False,
        counts=COUNTS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lower <= self.upper:
            raise UsageError(f"lower must be above 0 and at most upper, not {self.lower} with upper {self.upper}")

    def round(self, run: CanvasRun, proposals: Proposals, rows: Sequence[int]) -> Round:
        run.facts.setdefault("tau", []).append(self.threshold(proposals))
        return (yield from super().round(run, proposals, rows))

    def threshold(self, proposals: Proposals) -> float:
        """Returns this round's threshold."""
        filled = proposals.block.filled
        reference = np.mean(filled) if filled else proposals.confidence[proposals.eligible].max()
        return float(np.clip(reference, self.lower, self.upper))

    def select(self, proposals: Proposals) -> Chosen:
        return proposals.eligible & (proposals.confidence >= self.threshold(proposals))
