"""The scorer `self`: how probable the model itself found its steps. It costs no pass beside those that wrote them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from outlay.engine.tree_run import TreeRun
from outlay.rewards.scorer import Rewards, RunScorer, Scorer, check_reduce, count_scores, reduced
from outlay.tree.token_tree import Node


@dataclass(frozen=True)
class OwnProbability(Scorer):
    """Rewards a step with its probability under the model's raw logits."""

    reduce: str = "last"
    """How the rewards of a text's steps become one: last, min or prod."""

    def __post_init__(self) -> None:
        check_reduce(self.reduce)

    def begin(self, run: TreeRun, step: str = "") -> RunScorer:
        return _OwnRunScorer(run, self.reduce)


class _OwnRunScorer(RunScorer):
    """A step is what was written since the last node above that was rated."""

    reads_logprobs = True

    def __init__(self, run: TreeRun, reduce: str) -> None:
        super().__init__(run)
        self._reduce, self._top = reduce, run.tip
        self._logprobs: dict[Node, float] = {}
        self._steps: dict[Node, tuple[float, ...]] = {}  # the rewards of the steps up to a rated node

    def wrote(self, node: Node, logprob: float) -> None:
        self._logprobs[node] = logprob

    def rewards(self, nodes: Sequence[Node]) -> Rewards:
        fresh = [node for node in dict.fromkeys(nodes) if node not in self._steps]
        if fresh:
            yield count_scores(self.run, len(fresh))
        for node in fresh:
            self._steps[node] = self._rate(node)
        return [reduced(self._steps[node], self._reduce) for node in nodes]

    def _rate(self, node: Node) -> tuple[float, ...]:
        logprob, above = 0.0, node
        while above is not self._top and above not in self._steps:
            logprob += self._logprobs[above]
            assert above.parent is not None, "a rated node lies below the prompt"
            above = above.parent
        return *self._steps.get(above, ()), min(1.0, math.exp(logprob))
