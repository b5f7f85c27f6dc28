"""The candidates of a round: one tree that all sources add to, from which the tree to draft is chosen.

A node is accepted with the product of the probabilities along its path. Time that a round spends could have made tokens
otherwise, so nodes are worth drafting as long as their probabilities add up to more than the rate of decoding times the
seconds that their rows take (Dinkelbach's method for the greatest ratio of tokens to seconds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from outlay.decode.draft.auto.acceptance import Calibration
from outlay.speculation.rounds import ROOT, DraftTree


@dataclass
class Candidate:
    """What sources say of a node: its probability after its parent, the source that gave it, and what each said."""

    probability: float
    source: str
    said: list[tuple[Calibration, float]]


class Candidates:
    """A tree of candidates. `limit` is the probability of a path below which nothing is added."""

    def __init__(self, limit: float) -> None:
        self.tree = DraftTree()
        self._limit = limit
        self._nodes: list[Candidate] = []
        self._reach = {ROOT: 1.0}

    def add(self, parent: int, token: int, calibration: Calibration, confidence: float) -> int | None:
        """Adds a token after `parent`; a node that several sources propose has the best of their probabilities.

        Returns:
            The node, or None where its path is too improbable.
        """
        probability = calibration.probability(confidence)
        reach = self._reach[parent] * probability
        known = self.tree.child(parent, token)
        if known is None:
            if reach < self._limit:
                return None
            node = self.tree.add(parent, token, calibration.source)
            self._nodes.append(Candidate(probability, calibration.source, [(calibration, confidence)]))
            self._reach[node] = reach
            return node
        candidate = self._nodes[known]
        candidate.said.append((calibration, confidence))
        if probability > candidate.probability:
            candidate.probability, candidate.source = probability, calibration.source
            self._reach[known] = reach
        return known

    def reach(self, node: int) -> float:
        """Returns the probability that the path to a node is accepted."""
        return self._reach[node]

    def choose(self, price: Sequence[float], depth: int) -> tuple[DraftTree, float]:
        """Chooses the tree with the most expected tokens after its price.

        The most probable nodes come first. All their numbers are compared, since a pass may cost the same over more
        rows, up to a width.

        Args:
            price: What 0, 1, ... nodes cost, in tokens; its length limits the tree.
            depth: The greatest depth.

        Returns:
            The tree, and how many of its nodes are expected to be accepted.
        """
        heap: list[tuple[float, int]] = []
        order: list[int] = []
        expected, best, size = 0.0, (0.0, 0.0), 0
        at, reach = ROOT, 1.0
        while len(order) + 1 < len(price):
            for child in self.tree.children(at):
                if self.tree.depths[child] <= depth:
                    heappush(heap, (-reach * self._nodes[child].probability, child))
            if not heap:
                break
            negative, at = heappop(heap)
            reach = -negative
            order.append(at)
            expected += reach
            if expected - price[len(order)] > best[0]:
                best, size = (expected - price[len(order)], expected), len(order)
        return self._drafted(order[:size]), best[1]

    def learn(self, committed: Sequence[int]) -> None:
        """Tells the acceptance model what became of the candidates; `committed` are the tokens that followed."""
        path = self.tree.follow(committed)
        for at, token in zip([ROOT, *path], committed, strict=False):
            for child in self.tree.children(at):
                for calibration, confidence in self._nodes[child].said:
                    calibration.observe(confidence, self.tree.tokens[child] == token)

    def _drafted(self, nodes: Sequence[int]) -> DraftTree:
        tree, places = DraftTree(), {ROOT: ROOT}
        for node in nodes:
            parent = places[self.tree.parents[node]]
            places[node] = tree.add(parent, self.tree.tokens[node], self._nodes[node].source)
        return tree
