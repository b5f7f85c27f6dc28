"""PPD's dynamic sparse trees: which guesses to verify, and how many prompt tokens to hang from each (Chen et al. 2024,
section 4).

`accuracy[i][r]` is how often the guess i + 1 tokens ahead has the right token at rank r. A node of a tree is a path of
ranks (r_1, ..., r_j), worth the product of its accuracies: how often it is right. With k guesses at hand the tree T_k
is used; a node that is the last accepted one gives as many guesses for the next pass as it has prompt tokens.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Path = tuple[int, ...]
MOST_AT_ONE = 10  # nodes of T_1: as many as ranks are looked at


@dataclass(frozen=True)
class SparseTree:
    """T_k: its paths, the most valuable first, each with its value and the number of its prompt tokens. The root has
    `root` of them."""

    paths: tuple[Path, ...]
    values: tuple[float, ...]
    prompts: tuple[int, ...]
    root: int

    def cut(self, depth: int) -> SparseTree:
        """Returns the tree without what lies deeper than `depth`."""
        shallow = [place for place, path in enumerate(self.paths) if len(path) <= depth]
        if len(shallow) == len(self.paths):
            return self
        return SparseTree(
            paths=tuple(self.paths[place] for place in shallow),
            values=tuple(self.values[place] for place in shallow),
            prompts=tuple(self.prompts[place] for place in shallow),
            root=self.root,
        )

    @property
    def length(self) -> int:
        """The rows of the pass: the root, the nodes, and the prompt tokens of all of them."""
        return 1 + self.root + len(self.paths) + sum(self.prompts)

    @property
    def expected(self) -> float:
        """F: the expected number of accepted nodes."""
        return math.fsum(self.values)

    @cached_property
    def last(self) -> tuple[float, dict[Path, float]]:
        """How often the root, and each node, is the last accepted one."""
        last = dict(zip(self.paths, self.values, strict=True))
        root = 1.0
        for path, value in zip(self.paths, self.values, strict=True):
            if len(path) == 1:
                root -= value
            else:
                last[path[:-1]] -= value
        return root, last


@dataclass(frozen=True)
class TreePlan:
    """The trees of all states, T_1 first, and what is expected of them: `states` is how often each of the states 1..m
    is visited, `tau` the tokens that a pass gives."""

    trees: tuple[SparseTree, ...]
    states: tuple[float, ...]
    tau: float

    @property
    def length(self) -> int:
        """The most rows that a pass has."""
        return max(tree.length for tree in self.trees)


def best_paths(accuracy: Sequence[Sequence[float]], count: int, depth: int) -> list[tuple[Path, float]]:
    """Returns the `count` most valuable paths of up to `depth` ranks, in descending order. A path comes after its
    beginnings, because its value is no greater.
    """
    heap: list[tuple[float, Path]] = [(-accuracy[0][0], (0,))]
    found: list[tuple[Path, float]] = []
    while heap and len(found) < count:
        negative, path = heapq.heappop(heap)
        value = -negative
        found.append((path, value))
        rank, level = path[-1], len(path)
        above = value / accuracy[level - 1][rank] if accuracy[level - 1][rank] > 0 else 0.0
        if rank + 1 < len(accuracy[level - 1]):
            heapq.heappush(heap, (-above * accuracy[level - 1][rank + 1], (*path[:-1], rank + 1)))
        if level < depth:
            heapq.heappush(heap, (-value * accuracy[level][0], (*path, 0)))
    return found


def plan_trees(accuracy: Sequence[Sequence[float]], length: int) -> TreePlan | None:
    """Returns the best trees whose passes have at most `length` rows, by the number of their nodes; None where not
    even one guess with its prompt tokens has room.
    """
    accuracy = [sorted(row, reverse=True) for row in accuracy]
    m = len(accuracy)
    most = (length - 1 - m) // 2
    if most < 1:
        return None
    choices = [range(1, min(most, MOST_AT_ONE if k == 1 else most) + 1) for k in range(1, m + 1)]
    plans = (_planned(accuracy, counts, length) for counts in itertools.product(*choices))
    return max(plans, key=lambda plan: plan.tau)


def _planned(accuracy: Sequence[Sequence[float]], counts: Sequence[int], length: int) -> TreePlan:
    m = len(accuracy)
    grown = [best_paths(accuracy, count, k) for k, count in enumerate(counts, 1)]
    gains = [math.fsum(value for _, value in paths) for paths in grown]  # F(T_k)
    trees = tuple(_pruned(paths, gains, m, length) for paths in grown)
    moves = np.array([_moves(tree, m) for tree in trees])
    states = stationary(moves)
    return TreePlan(trees, tuple(states.tolist()), 1 + float(states @ np.array(gains)))


def _pruned(paths: Sequence[tuple[Path, float]], gains: Sequence[float], m: int, length: int) -> SparseTree:
    """Takes prompt tokens away, where that loses least, until the pass has at most `length` rows."""
    tree = SparseTree(tuple(p for p, _ in paths), tuple(v for _, v in paths), (m,) * len(paths), m)
    _, last = tree.last
    prompts = dict.fromkeys(tree.paths, m)
    excess = tree.length - length
    for _ in range(max(0, excess)):
        able = [path for path, count in prompts.items() if count > 1]
        if not able:
            break
        least = min(able, key=lambda path: last[path] * (gains[prompts[path] - 1] - gains[prompts[path] - 2]))
        prompts[least] -= 1
    return SparseTree(tree.paths, tree.values, tuple(prompts[path] for path in tree.paths), m)


def _moves(tree: SparseTree, m: int) -> list[float]:
    """Returns how often a pass over this tree is followed by each of the states 1..m."""
    root, last = tree.last
    moves = [0.0] * m
    moves[tree.root - 1] += root
    for path, prompts in zip(tree.paths, tree.prompts, strict=True):
        moves[prompts - 1] += last[path]
    return moves


def stationary(moves: np.ndarray) -> np.ndarray:
    """Returns the distribution [m] that the transition matrix `moves` [m, m] leaves as it is."""
    m = len(moves)
    system = np.vstack([moves.T - np.eye(m), np.ones(m)])
    return np.linalg.lstsq(system, np.r_[np.zeros(m), 1.0], rcond=None)[0]


def fastest(accuracy: Sequence[Sequence[float]], seconds: Callable[[int], float], most: int) -> TreePlan | None:
    """Returns the trees, of up to `most` rows a pass, that give the most tokens a second; None where plain decoding is
    the fastest. `seconds(n)` is the time of a pass over n rows.
    """
    plans = (plan_trees(accuracy[:m], length) for m in range(1, len(accuracy) + 1) for length in range(m + 3, most + 1))
    best = max(filter(None, plans), key=lambda plan: plan.tau / seconds(plan.length), default=None)
    return best if best is not None and best.tau / seconds(best.length) > 1 / seconds(1) else None
