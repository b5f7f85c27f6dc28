"""The two decodings that a commit filter learns from, each of whose rounds is kept (Learn2PD, Bao et al. 2025).

`OneByOne` writes the reference, one token a round. `EGP`, extremely greedy parallel, is told what that is, and fills
each position as soon as its proposal is right: the fewest rounds that a rule can take that only fills right tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from outlay.diffuse.learn2pd import CERTAIN, in_block
from outlay.diffuse.proposals import Chosen, Floats, Integers, Proposals, logprobs_of
from outlay.diffuse.rule import COUNTS, CommitRule, Round
from outlay.engine.canvas_run import CanvasRun
from outlay.engine.method import About

ABSENT = -1  # the position and the token of a place of the block that is not on the canvas
MOMENTS = "moments"  # among a result's facts


@dataclass(frozen=True)
class Moment:
    """What a round saw of its block, each [block]."""

    positions: Integers
    """Positions in the text."""
    tokens: Integers
    """The proposed tokens."""
    confidence: Floats
    """Their probabilities, 1 at places that are not on the canvas."""
    masked: Chosen
    """Whether they could be filled."""

    def proposes_what(self, other: Moment) -> bool:
        """Tells whether another round of the block proposed the same tokens."""
        return np.array_equal(self.positions, other.positions) and np.array_equal(self.tokens, other.tokens)


@dataclass(frozen=True)
class OneByOne(CommitRule):
    """Fills the most confident position of the block. `block` is a number."""

    about: ClassVar[About] = About(
        name="one_by_one", summary="the surest position, recorded", paper="", family="training",
        spends="a pass a token", saves="", exact=False, counts=COUNTS,
    )  # fmt: skip
    reads_filled: ClassVar[bool] = True

    def select(self, proposals: Proposals) -> Chosen:
        return proposals.best(proposals.confidence, proposals.eligible)

    def round(self, run: CanvasRun, proposals: Proposals, rows: Sequence[int]) -> Round:
        self._keep(run, proposals)
        return (yield from super().round(run, proposals, rows))

    def _keep(self, run: CanvasRun, proposals: Proposals) -> bool:
        """Keeps what a round sees; returns whether the round before saw the same."""
        assert isinstance(self.block, int), "it is given"
        now = Moment(
            in_block(proposals, proposals.positions, self.block, ABSENT),
            in_block(proposals, proposals.tokens, self.block, ABSENT),
            in_block(proposals, proposals.confidence, self.block, CERTAIN),
            in_block(proposals, proposals.masked, self.block, False),
        )
        moments: list[Moment] = run.facts.setdefault(MOMENTS, [])
        moments.append(now)
        return len(moments) > 1 and moments[-2].proposes_what(now)


@dataclass(frozen=True)
class EGP(OneByOne):
    """Fills what is right already. Where that changes no proposal, it writes the reference into the block."""

    reference: tuple[int, ...] = ()
    """The text that it is to write, its prompt included."""

    about: ClassVar[About] = replace(
        OneByOne.about, name="egp", summary="all that is right already", paper="Bao et al. 2025, Learn2PD"
    )

    def select(self, proposals: Proposals) -> Chosen:
        return proposals.eligible & (proposals.tokens == self._right(proposals))

    def chosen(self, proposals: Proposals) -> Chosen:
        return self.select(proposals)  # none where nothing is right: the next round is stuck then

    def round(self, run: CanvasRun, proposals: Proposals, rows: Sequence[int]) -> Round:
        if self._keep(run, proposals):
            right = self._right(proposals)
            proposals = replace(proposals, tokens=right, logprobs=logprobs_of(proposals.logits, right.tolist())[0])
        return (yield from super(OneByOne, self).round(run, proposals, rows))

    def _right(self, proposals: Proposals) -> Integers:
        return np.array(self.reference, dtype=np.int64)[proposals.positions]
