"""LocalLeap: beside a very confident position a lower confidence is enough (Kong et al. 2025, arXiv 2510.07081).

Positions near an anchor, one that a strict threshold accepts in this round, mostly keep the token that is proposed for
them now, the less so the further away they are. So the threshold is relaxed within a radius of the anchors.
Approximate; radius 0, or a relaxed threshold that is the strict one, is threshold decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from outlay.diffuse.proposals import Chosen, Proposals
from outlay.diffuse.rule import COUNTS, CommitRule, Round
from outlay.engine.canvas_run import CanvasRun
from outlay.engine.method import About
from outlay.errors import UsageError


@dataclass(frozen=True)
class LocalLeap(CommitRule):
    """Fills what a strict threshold accepts, and near it what a relaxed one does."""

    tau: float = 0.9
    """The strict threshold, from which a position is an anchor."""

    relaxed: float = 0.75
    """The threshold near an anchor."""

    radius: int = 4
    """How far from an anchor the relaxed threshold holds, in positions."""

    decay: Literal["none", "linear"] = "none"
    """How the relaxed threshold grows with the distance: not at all, as in the authors' code, or up to the strict one
    behind the radius."""

    strict_ends: bool = False
    """Whether end tokens are no anchors and need the strict threshold, so that runs of them don't cut answers short."""

    about: ClassVar[About] = About(
        name="localleap",
        summary="positions above a confidence, a lower one beside sure positions",
        paper="Kong et al. 2025",
        family="diffusion",
        spends="a pass a round",
        saves="rounds, where confidences are graded",
        exact=False,
        counts=COUNTS
        | {"anchors": "positions", "relaxed": "positions", "adjacent": "positions", "risk": "expected wrong tokens"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.relaxed <= self.tau:
            raise UsageError(f"relaxed must be above 0 and at most tau, not {self.relaxed} with tau {self.tau}")
        if self.radius < 0:
            raise UsageError(f"radius must be 0 or more, not {self.radius}")

    def round(self, run: CanvasRun, proposals: Proposals, rows: Sequence[int]) -> Round:
        chosen = self.chosen(proposals)
        risk = float((1 - proposals.confidence[chosen]).sum())
        if risk > run.left("risk"):
            run.spent_up = "risk"
            return None
        anchors = self.anchors(proposals)
        relaxed = chosen & ~anchors if anchors.any() else np.zeros_like(chosen)
        run.count(
            anchors=int(anchors.sum()),
            relaxed=int(relaxed.sum()),
            adjacent=int(adjacent(proposals.positions[relaxed]).sum()),
            risk=risk,
        )
        return (yield from super().round(run, proposals, rows))

    def anchors(self, proposals: Proposals) -> Chosen:
        """Returns the positions that the strict threshold accepts, [n]."""
        anchors = proposals.eligible & (proposals.confidence >= self.tau)
        return anchors & ~_ends(proposals) if self.strict_ends else anchors

    def select(self, proposals: Proposals) -> Chosen:
        eligible, confidence = proposals.eligible, proposals.confidence
        strict = eligible & (confidence >= self.tau)
        near = eligible & (confidence >= self._thresholds(proposals)) & ~strict
        if self.strict_ends:
            near &= ~_ends(proposals)
        best = proposals.best(confidence, eligible)
        return within_risk(confidence, strict | best, near, proposals.left("risk"), best)

    def _thresholds(self, proposals: Proposals) -> np.ndarray:
        """Returns the threshold of each position by its distance from the nearest anchor, [n]."""
        positions = proposals.positions
        anchors = positions[self.anchors(proposals)]
        if not len(anchors):
            return np.full(len(positions), np.inf)
        distance = np.abs(positions[:, None] - anchors).min(1)
        thresholds = np.full(len(positions), self.relaxed)
        if self.decay == "linear" and self.radius:
            thresholds += (self.tau - self.relaxed) * (distance - 1) / self.radius
        return np.where(distance <= self.radius, thresholds, np.inf)


def within_risk(confidence: np.ndarray, strict: Chosen, near: Chosen, left: float, best: Chosen) -> Chosen:
    """Returns what is filled so that the sum of 1 - confidence is at most `left`.

    By the union bound that sum bounds the probability that the filled tokens are not the most probable ones together.

    Args:
        confidence: Of each position, [n].
        strict: Positions that the strict threshold accepts, [n].
        near: Positions that are relaxed; the least confident are left out first.
        left: What the budget leaves of the risk.
        best: The most confident position, which stays where the strict ones are too many.
    """
    spare = left - float((1 - confidence[strict]).sum())
    if spare < 0:
        return best
    places = np.flatnonzero(near)
    places = places[np.argsort(-confidence[places], kind="stable")]
    chosen = strict.copy()
    chosen[places[(1 - confidence[places]).cumsum() <= spare]] = True
    return chosen


def adjacent(positions: np.ndarray) -> Chosen:
    """Returns which of some positions [n] in order lie beside another of them.

    Tokens that are filled beside each other below the strict threshold depend on each other most: words that are
    written twice or left out come from them.
    """
    beside = np.diff(positions) == 1
    return np.append(beside, False) | np.insert(beside, 0, False) if len(positions) else np.zeros(0, bool)


def _ends(proposals: Proposals) -> Chosen:
    return np.isin(proposals.tokens, list(proposals.ends))
