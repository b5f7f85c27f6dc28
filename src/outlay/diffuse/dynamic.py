"""SDAR's dynamic sampler: all positions above a threshold, and never fewer than a schedule fills (Cheng et al. 2025,
arXiv 2510.06303).

Where fewer positions pass the threshold than a schedule of `steps` rounds would fill, the surest of that number are
filled, so that a block never takes more rounds than the schedule. Approximate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from outlay.diffuse.proposals import Chosen, Proposals
from outlay.diffuse.rule import COUNTS, CommitRule
from outlay.diffuse.schedule import quotas, rounds_of_block
from outlay.engine.canvas_run import CanvasRun
from outlay.engine.method import About
from outlay.errors import UsageError


@dataclass(frozen=True)
class Dynamic(CommitRule):
    """Fills all positions above a threshold, or as many of the surest as a schedule of rounds says."""

    tau: float = 0.85
    """The confidence from which a position is filled."""

    steps: int | None = None
    """Rounds for the whole canvas at most, at least one for each block; none: a round for each token."""

    about: ClassVar[About] = About(
        name="dynamic",
        summary="all positions above a confidence, at least as many as a schedule says",
        paper="Cheng et al. 2025, SDAR",
        family="diffusion",
        spends="a pass a round, at most as many as asked for",
        saves="rounds, where many positions are certain at once",
        exact=False,
        counts=COUNTS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau > 0:
            raise UsageError(f"tau must be above 0, not {self.tau}")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps must be 1 or more, not {self.steps}")

    def quotas(self, run: CanvasRun, begin: int, end: int) -> Sequence[int]:
        blocks = run.blocks(self.block_size(run.submission))
        return quotas(end - begin, rounds_of_block(self.steps, blocks, blocks.index((begin, end))))

    def select(self, proposals: Proposals) -> Chosen:
        eligible = proposals.eligible
        certain = eligible & (proposals.confidence >= self.tau)
        quota = proposals.block.quota
        return certain if certain.sum() >= quota else proposals.best(proposals.confidence, eligible, quota)
