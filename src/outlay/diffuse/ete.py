"""Explore-then-exploit: a round also fills a few uncertain positions that lie apart (Fu et al. 2025, arXiv 2511.21103).

What a round may fill with confidence carries little information, so the information of a text bounds the number of its
rounds from below: those that explored or were forced, and for what the others filled its nats over the most that one of
them may fill.
Exploring raises the information of a round; a gap keeps explored positions nearly independent, and what they decide is
exploited in the next round, also in later blocks. Approximate. The paper's own algorithm is not public: this one is
built from its theorems, and its defaults are ours.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from outlay.diffuse.proposals import Chosen, Proposals
from outlay.diffuse.rule import COUNTS, CommitRule, Logits, Round
from outlay.engine.canvas_run import CanvasRun
from outlay.engine.method import About
from outlay.engine.request import Request
from outlay.engine.submission import Submission
from outlay.errors import OutlayWarning, UsageError

Tokens = Mapping[int, tuple[int, float]]  # tokens by position, each with its log-probability


@dataclass(frozen=True)
class ETE(CommitRule):
    """Fills what is certain, and explores uncertain positions at a distance from each other."""

    tau: float = 0.9
    """The confidence from which a position of the block is exploited."""

    tau_next: float = 0.9
    """The same in the blocks that are looked ahead to."""

    look: int = 1
    """Blocks that are looked ahead to; 0 behind a block-causal cache."""

    explore: int = 1
    """Uncertain positions that a round fills; more where a cap on rounds needs it: masks / (gap x rounds left)."""

    gap: int = 8
    """Positions explored in one round lie further apart than this."""

    trigger: Literal["always", "low"] = "always"
    """When a round explores: always, or where what it exploits carries less than `low_nats`."""

    low_nats: float = 0.1
    """The nats below which a round explores with trigger=low."""

    target: Literal["entropy", "leftmost", "info_gain"] = "entropy"
    """What is explored: the highest entropy, the first mask of each block, or, with mode=branch, the position whose
    most probable token makes most others certain."""

    mode: Literal["commit", "branch"] = "commit"
    """Whether explored tokens are filled at once, or several of them are tried side by side in the next pass."""

    branches: int = 2
    """Canvases that are tried side by side with mode=branch, each a row of the batch; 1 is mode=commit."""

    about: ClassVar[About] = About(
        name="ete",
        summary="what is certain, and a few uncertain positions apart from each other",
        paper="Fu et al. 2025",
        family="diffusion",
        spends="a pass a round; with mode=branch as many canvases in it as branches",
        saves="rounds, by information that a threshold never takes",
        exact=False,
        counts=COUNTS
        | {
            "explored": "positions",
            "nats_explored": "nats",
            "nats_exploited": "nats",
            "open_rounds": "rounds",
            "branch_canvases": "canvases",
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("tau", self.tau), ("tau_next", self.tau_next)):
            if not value > 0:
                raise UsageError(f"{name} must be above 0, not {value}")
        for name, least in (("look", 0), ("explore", 0), ("gap", 0), ("branches", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be {least} or more, not {getattr(self, name)}")
        if self.target == "info_gain" and self.mode != "branch":
            raise UsageError("target=info_gain looks at what a pass makes of each position; take mode=branch with it")
        if self.guidance and self.mode == "branch":
            raise UsageError("mode=branch tries canvases behind their prompt alone; take guidance=0 with it")

    @property
    def lookahead(self) -> int:
        return self.look

    def check(self, submission: Submission) -> None:
        super().check(submission)
        if self.mode == "branch" and self.branches > 1 and not submission.greedy:
            warnings.warn(
                "ete with several branches takes the best of them, so above temperature 0 its texts are more probable "
                "than the model's own; take branches=1 for samples",
                OutlayWarning,
                stacklevel=4,
            )

    def select(self, proposals: Proposals) -> Chosen:
        exploited = self.exploited(proposals)
        return exploited | self.explored(proposals, exploited)

    def exploited(self, proposals: Proposals) -> Chosen:
        """Returns the positions that are certain enough, [n]."""
        certain = proposals.eligible & (proposals.confidence >= self.tau)
        return certain | (proposals.ahead & (proposals.confidence >= self.tau_next))

    def explored(self, proposals: Proposals, exploited: Chosen) -> Chosen:
        """Returns the uncertain positions that this round fills as well, [n]."""
        count = self._count(proposals)
        if count == 0 or (self.trigger == "low" and _nats(proposals, exploited) >= self.low_nats):
            return np.zeros_like(exploited)
        return spaced(
            self._scores(proposals), proposals.positions, self._candidates(proposals, exploited), count, self.gap
        )

    def round(self, run: CanvasRun, proposals: Proposals, rows: Sequence[int]) -> Round:
        exploited = self.exploited(proposals)
        explored = self.explored(proposals, exploited)
        if self.mode == "branch" and self.branches > 1 and explored.any() and not self._last_pass(run, len(rows)):
            found = yield from self._branch(run, proposals, rows, exploited)
        else:
            chosen, found = self.chosen(proposals), None
            self._count_round(run, proposals, exploited, chosen & ~exploited)
            self.fill(run, proposals, chosen)
        run.count(rounds=1)
        eligible = (1 + self.look) * (proposals.block.end - proposals.block.begin)
        beta = eligible * math.log(1 / min(self.tau, self.tau_next, 1.0))
        run.facts["lower_bound_rounds"] = lower_bound(run.facts["nats_by_round"], beta)
        return found

    def _count_round(self, run: CanvasRun, proposals: Proposals, exploited: Chosen, others: Chosen) -> None:
        """Enters the information of a round: what is exploited, and what is explored or forced."""
        nats = _nats(proposals, exploited), _nats(proposals, others)
        self._count_nats(run, nats, int(others.sum()))

    @staticmethod
    def _count_nats(run: CanvasRun, nats: tuple[float, float], others: int) -> None:
        run.count(nats_exploited=nats[0], nats_explored=nats[1], explored=others, open_rounds=int(others > 0))
        run.facts.setdefault("nats_by_round", []).append(nats if others else (nats[0], None))

    def _branch(
        self, run: CanvasRun, proposals: Proposals, rows: Sequence[int], exploited: Chosen
    ) -> Generator[Request | list[Request], Any, Logits | None]:
        """Tries several ways to explore side by side in the next pass, and keeps the one that makes most certain."""
        ways = self._ways(proposals, exploited)
        self.fill(run, proposals, exploited)
        if run.finish_reason is not None or run.spent_up:
            return None
        block, canvas = proposals.block, run.canvas
        copies = [run.target.copy(canvas) for _ in ways]
        asked: list[Request] = []
        wanted = []
        end = min(rows[-1] + 1, int(proposals.positions[-1]) + 1 + block.end - block.begin)  # and the block behind
        for copied, way in zip(copies, ways, strict=True):
            for position, (token, _) in way.items():
                copied.fill(position, token)
            wanted.append(copied.masked(block.begin, end))
            asked.append(run.denoise(rows, wanted[-1], copied))
        run.count(branch_canvases=len(ways))
        logits = yield asked
        for copied in copies:
            run.target.drop(copied)
        best = max(range(len(ways)), key=lambda way: self._value(run, proposals, ways[way], wanted[way], logits[way]))
        way = ways[best]
        nats = -sum(logprob for _, logprob in way.values())
        self._count_nats(run, (_nats(proposals, exploited), nats), len(way))
        for position, (token, logprob) in way.items():
            place = int(np.flatnonzero(proposals.positions == position)[0])
            run.fill(position, token, logprob, proposals.logits[place])
            if position < block.end:
                block.filled.append(math.exp(logprob))
        return (wanted[best], logits[best]) if wanted[best] else None

    def _value(
        self, run: CanvasRun, proposals: Proposals, way: Tokens, positions: Sequence[int], logits: torch.Tensor
    ) -> float:
        """Returns how good a way to explore is: its log-probability, and what it makes certain."""
        if not positions:
            return sum(logprob for _, logprob in way.values())
        found = self.proposals(run, proposals.block, positions, logits)
        certain = self.exploited(found)
        gained = float(found.logprobs[certain].sum()) + math.log(1 / min(self.tau, 1.0)) * int(certain.sum())
        return sum(logprob for _, logprob in way.values()) + gained

    def _ways(self, proposals: Proposals, exploited: Chosen) -> list[Tokens]:
        """Returns what is tried: the most probable tokens of the explored positions, or other positions."""
        candidates, scores, count = (
            self._candidates(proposals, exploited),
            self._scores(proposals),
            self._count(proposals),
        )
        if self.target == "info_gain":
            firsts = np.flatnonzero(spaced(scores, proposals.positions, candidates, self.branches, self.gap))
            ways: list[Tokens] = []
            for first in firsts[np.argsort(-scores[firsts], kind="stable")]:
                led = np.where(np.arange(len(scores)) == first, np.inf, scores)
                places = np.flatnonzero(spaced(led, proposals.positions, candidates, count, self.gap))
                ways.append(
                    {
                        int(proposals.positions[p]): (int(proposals.tokens[p]), float(proposals.logprobs[p]))
                        for p in places
                    }
                )
            return ways
        places = np.flatnonzero(spaced(scores, proposals.positions, candidates, count, self.gap))
        top = proposals.all_logprobs[torch.from_numpy(places)].topk(min(self.branches, proposals.logits.shape[1]), -1)
        return joint_beam(
            [int(proposals.positions[place]) for place in places],
            top.indices.tolist(),
            top.values.tolist(),
            self.branches,
        )

    def _count(self, proposals: Proposals) -> int:
        """Returns how many positions are explored, with more where a cap on rounds leaves too few of them."""
        rounds = proposals.left("rounds")
        if self.explore == 0 or not math.isfinite(rounds):
            return self.explore
        return max(self.explore, math.ceil(proposals.masks_left / (max(self.gap, 1) * max(rounds, 1))))

    def _scores(self, proposals: Proposals) -> np.ndarray:
        if self.target != "leftmost":
            return proposals.entropy
        size = proposals.block.end - proposals.block.begin
        behind = (proposals.positions - proposals.block.begin) % size  # the first of each block comes first
        return -(behind + proposals.positions / 1e6)

    @staticmethod
    def _candidates(proposals: Proposals, exploited: Chosen) -> Chosen:
        """Returns the positions that may be explored: no end tokens, but for the most probable ones of the block."""
        ends = np.isin(proposals.tokens, list(proposals.ends))
        if ends.any():
            likely = proposals.logits.argmax(-1).cpu().numpy() == proposals.tokens
            ends &= ~(likely & proposals.eligible)
        return proposals.masked & ~proposals.late & ~exploited & ~ends


def spaced(scores: np.ndarray, positions: np.ndarray, candidates: Chosen, count: int, gap: int) -> Chosen:
    """Returns up to `count` candidates of the highest scores, each more than `gap` positions from those before it.

    Args:
        scores: What is preferred, [n]; ties go to the first.
        positions: Positions in the text, [n].
        candidates: What may be chosen, [n].
        count: How many at most.
        gap: Distance that is too small.
    """
    chosen, left = np.zeros_like(candidates), candidates.copy()
    while count > 0 and left.any():
        place = int(np.where(left, scores, -np.inf).argmax())
        chosen[place] = True
        left &= np.abs(positions - positions[place]) > gap
        left[place] = False
        count -= 1
    return chosen


def joint_beam(
    positions: Sequence[int], tokens: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]], width: int
) -> list[Tokens]:
    """Returns the `width` most probable choices of a token for each position, by the product of their probabilities.

    Args:
        positions: The positions.
        tokens: The most probable tokens of each position.
        logprobs: Their log-probabilities.
        width: How many choices.
    """
    beam: list[tuple[float, Tokens]] = [(0.0, {})]
    for position, ids, logs in zip(positions, tokens, logprobs, strict=True):
        grown: list[tuple[float, Tokens]] = [
            (total + log, {**way, position: (token, log)})
            for (total, way), (token, log) in itertools.product(beam, zip(ids, logs, strict=True))
        ]
        beam = sorted(grown, key=lambda entry: -entry[0])[:width]
    return [way for _, way in beam]


def lower_bound(nats_by_round: Sequence[tuple[float, float | None]], beta: float) -> float:
    """Returns the fewest rounds that the information of a text allows.

    Rounds that explored, or were forced to fill their best position, count as they are; what the others exploited takes
    its nats over `beta` rounds.

    Args:
        nats_by_round: The nats that each round exploited and explored; None where it explored nothing.
        beta: The nats that a round may exploit at most.
    """
    exploited = sum(nats for nats, explored in nats_by_round if explored is None)
    opened = sum(explored is not None for _, explored in nats_by_round)
    return opened + (exploited / beta if beta > 0 else 0.0)


def _nats(proposals: Proposals, chosen: Chosen) -> float:
    return float(-proposals.logprobs[chosen].sum())
