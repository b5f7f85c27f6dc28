"""Trees from a table of tri-grams: what follows two tokens, followed on (ADED, Liu et al. 2025).

The table may have learned from the texts that it drafted for. A tree is found by Monte-Carlo search, as in the paper,
or by taking the most probable paths first, which finds much the same trees for a tenth of the time.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from outlay.engine.run import Run
from outlay.speculation.drafter import Proposer
from outlay.speculation.ngrams import Learned, NgramTable, Successors
from outlay.speculation.tree import ROOT, DraftTree

ORIGIN = "table"
MOST = 12  # successors of a pair that are looked at
Follow = Callable[[int, int], Successors]


def best_first(follow: Follow, a: int, b: int, nodes: int, depth: int) -> DraftTree:
    """Returns the paths after the tokens a, b with the largest products of normalised weights."""
    tree, order = DraftTree(), count()
    heap: list[tuple[float, int, int, int, int, int]] = []  # -log weight, order, parent, tokens of the pair, depth

    def push(weight: float, parent: int, a: int, b: int, level: int) -> None:
        found = follow(a, b)[:MOST]
        total = sum(amount for _, amount in found)
        for token, amount in found:
            if amount > 0:
                heapq.heappush(heap, (weight - math.log(amount / total), next(order), parent, b, token, level))

    push(0.0, ROOT, a, b, 1)
    while heap and len(tree) < nodes:
        weight, _, parent, before, token, level = heapq.heappop(heap)
        node = tree.add(parent, token, ORIGIN)
        if level < depth:
            push(weight, node, before, token, level + 1)
    return tree


@dataclass
class Visited:
    """A node of the search: the pair that it stands for, how often it was visited, the sum of the scores, its prior."""

    before: int
    token: int
    prior: float = 0.0
    visits: int = 0
    score: float = 0.0
    parent: Visited | None = None
    children: list[Visited] = field(default_factory=list)

    def path(self) -> list[int]:
        """Returns the tokens from the first one below the root down to this one."""
        tokens: list[int] = []
        node: Visited | None = self
        while node is not None and node.parent is not None:
            tokens.append(node.token)
            node = node.parent
        return tokens[::-1]


@dataclass(frozen=True)
class TreeSearch:
    """Monte-Carlo tree search with the paper's constants: `c1` and `c2` of its PUCT rule, `top` paths kept."""

    iterations: int = 150
    depth: int = 4
    top: int = 24
    c1: float = 32.0
    c2: float = 8.0

    def run(self, follow: Follow, a: int, b: int, draw: random.Random) -> Visited:
        """Searches from the pair a, b; returns the root."""
        root = Visited(a, b)
        for _ in range(self.iterations):
            node, level, weights = root, 0, 0.0
            while node.children and level < self.depth:
                node = max(node.children, key=self._value)
                weights, level = weights + node.prior, level + 1
            if level < self.depth and (found := follow(node.before, node.token)):
                node.children = [Visited(node.token, token, weight, parent=node) for token, weight in found[:MOST]]
                node = node.children[0]  # the one with the largest prior
                weights, level = weights + node.prior, level + 1
            score = 1 + weights + self._rollout(follow, node, level, draw)
            walk: Visited | None = node
            while walk is not None:
                walk.visits += 1
                walk.score += score
                walk = walk.parent
        return root

    def tree(self, root: Visited, follow: Follow, nodes: int) -> DraftTree:
        """Returns the most visited paths, each extended by its most probable successor, in at most `nodes` nodes."""
        visited = []
        stack = list(root.children)
        while stack:
            node = stack.pop()
            if node.visits:
                visited.append(node)
                stack += node.children
        order = {id(node): place for place, node in enumerate(sorted(visited, key=lambda node: (node.path(),)))}
        visited.sort(key=lambda node: (-node.visits, order[id(node)]))
        tree = DraftTree()
        paths = [node.path() for node in visited[: self.top - 1]]
        ahead = [(node, found[0][0]) for node in visited[: self.top - 1] if (found := follow(node.before, node.token))]
        for path in [*paths, *([*node.path(), token] for node, token in ahead)]:
            if not _add(tree, path, nodes):
                break
        return tree

    def _value(self, node: Visited) -> float:
        if node.visits == 0:
            return math.inf
        assert node.parent is not None
        seen = node.parent.visits
        explore = self.c1 + math.log((seen + self.c2 + 1) / self.c2)
        return node.score / node.visits + explore * node.prior * math.sqrt(seen) / (1 + node.visits)

    def _rollout(self, follow: Follow, node: Visited, level: int, draw: random.Random) -> float:
        """Goes on to the full depth by weighted draws; returns the sum of the weights."""
        before, token, weights = node.before, node.token, 0.0
        while level < self.depth and (found := follow(before, token)):
            found = found[:MOST]
            [(chosen, weight)] = draw.choices(found, [weight for _, weight in found])
            before, token, weights, level = token, chosen, weights + weight, level + 1
        return weights


def _add(tree: DraftTree, path: list[int], nodes: int) -> bool:
    """Adds what the tree lacks of a path; tells whether there was room for it."""
    at = ROOT
    for token in path:
        below = tree.child(at, token)
        if below is None:
            if len(tree) >= nodes:
                return False
            below = tree.add(at, token, ORIGIN)
        at = below
    return True


def follower(learned: Learned) -> Follow:
    """Returns what a search asks: a table's successors, each pair looked up once."""
    known: dict[tuple[int, int], Successors] = {}

    def follow(a: int, b: int) -> Successors:
        if (a, b) not in known:
            known[a, b] = learned.successors(a, b)
        return known[a, b]

    return follow


class TableProposer(Proposer):
    """Proposes the best trees of a table that learns from its run's prompt and text."""

    name = ORIGIN

    def __init__(self, run: Run, learned: Learned, delta: float = 0.4) -> None:
        self._run, self._learned, self._delta = run, learned, delta
        self._text: list[int] = []
        self._known = 0

    def propose(self, nodes: int, depth: int) -> DraftTree:
        """Learns what the run has written since, and returns the most probable paths behind it."""
        fresh = [*(() if self._text else self._run.prompt), *self._run.tokens[self._known :]]
        self._known = len(self._run.tokens)
        self._learned.raise_by(self._delta, [*self._text[-2:], *fresh])
        self._text += fresh
        if len(self._text) < 2:
            return DraftTree()
        return best_first(follower(self._learned), self._text[-2], self._text[-1], nodes, depth)


@dataclass(frozen=True)
class TableSource:
    """A table of tri-grams as the draft of any method: `draft="table"`. It learns anew in each run."""

    table: NgramTable | None = None

    def begin(self, run: Run) -> TableProposer:
        """Returns the run's own."""
        return TableProposer(run, Learned(self.table))
