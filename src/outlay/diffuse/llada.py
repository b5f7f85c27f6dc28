"""LLaDA's sampler: a round fills a fixed number of positions, those of which the model is surest (Nie et al. 2025,
arXiv 2502.09992).

The rounds are a schedule that is known beforehand: `steps` of them, shared out over the blocks. "Remasking" in that
paper means that the other positions stay masked; what is filled stays filled. Approximate above one token a round, and
above temperature 0 also at one token a round where positions are chosen by the tokens that were drawn there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from outlay.diffuse.proposals import Chosen, Proposals
from outlay.diffuse.rule import COUNTS, CommitRule
from outlay.diffuse.schedule import quotas, rounds_of_block
from outlay.engine.canvas_run import CanvasRun
from outlay.engine.method import About
from outlay.errors import UsageError


@dataclass(frozen=True)
class LLaDA(CommitRule):
    """Fills as many positions as a schedule of rounds says, the surest first."""

    steps: int | None = None
    """Rounds for the whole canvas, at least one for each block; none: a round for each token."""

    by: Literal["confidence", "random", "margin", "entropy"] = "confidence"
    """What ranks positions: confidence, a random number, the probability of the best token minus that of the second,
    or the lowest entropy."""

    about: ClassVar[About] = About(
        name="llada",
        summary="a fixed number of positions a round, the surest first",
        paper="Nie et al. 2025, LLaDA",
        family="diffusion",
        spends="a pass a round, as many as asked for",
        saves="rounds, at the cost of quality",
        exact=False,
        counts=COUNTS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps must be 1 or more, not {self.steps}")

    def quotas(self, run: CanvasRun, begin: int, end: int) -> Sequence[int]:
        blocks = run.blocks(self.block_size(run.submission))
        return quotas(end - begin, rounds_of_block(self.steps, blocks, blocks.index((begin, end))))

    def select(self, proposals: Proposals) -> Chosen:
        if self.by == "random":
            scores = np.array([proposals.random(int(position)) for position in proposals.positions])
        elif self.by == "margin":
            scores = proposals.margin
        else:
            scores = -proposals.entropy if self.by == "entropy" else proposals.confidence
        return proposals.best(scores, proposals.eligible, proposals.block.quota)
