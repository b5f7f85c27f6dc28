"""ADED: drafts from a table of tri-grams that adapts to what is decoded, with no draft model and no training.

The table begins with a corpus and is raised by committed tokens, so that it drifts towards the model's own
distribution; a search over it gives a small tree that balances likely and diverse continuations (Liu et al. 2025, also
called Adaptix). Lossless: one token is drawn at each node and matched with the tree, so the text is what greedy or
sample write with the same seed.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar, Literal

from outlay.engine.method import About, Method, Work
from outlay.engine.random import mix
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.speculation.ngrams import NgramTable, Successors
from outlay.speculation.rounds import (
    ROOT,
    DraftLimits,
    DraftTree,
    Proposer,
    sample_and_match,
    steered,
    verify_tree,
)
from outlay.speculation.tables import open_table

ORIGIN = "table"
MAX_SUCCESSORS = 12  # of a pair of tokens, as many as a table keeps
Follow = Callable[[int, int], Successors]


@dataclass(frozen=True)
class ADED(Method):
    """Adaptive draft and verification (Liu et al. 2025, algorithm 1)."""

    table: str = "default"
    """A file of tri-grams, "default" for one of Python's standard library that is made at first use, or "none"."""

    search: Literal["best_first", "mcts"] = "best_first"
    """How the tree is found: by the most probable paths first, or by the paper's Monte-Carlo tree search."""

    num_draft: int = 16
    """Nodes of a drafted tree."""

    depth: int = 4
    """Depth of the search; a tree is at most one token deeper."""

    update: Literal["paper", "once", "off"] = "paper"
    """How the table adapts: "paper" raises every triple of the last `window` tokens by `delta` before each draft;
    "once" raises each new triple once, by ten times that; "off" leaves the table as it is."""

    prime_prompt: float = 0.4
    """What each triple of the prompt is raised by, once (0: as in the paper)."""

    persist: bool = True
    """Whether what was learned lasts from one prompt to the next."""

    delta: float = 0.04
    """What a triple's weight is raised by; Delta in the paper."""

    cap: float = 3.0
    """The most that a triple's weight can become."""

    window: int = 16
    """Tokens at the end of the text whose triples are raised."""

    decay: float = 1.0
    """What learned weights are multiplied by in each round."""

    iterations: int = 150
    """Iterations of the Monte-Carlo tree search; s in the paper."""

    about: ClassVar[About] = About(
        name="aded",
        summary="a tree from a table of tri-grams that adapts to what is decoded",
        paper="Liu et al. 2025, https://arxiv.org/abs/2407.12021",
        family="speculation",
        spends="`num_draft` + 1 positions a target pass",
        takes=("constraint", "cache"),
        saves="target passes, most for code and text that repeats itself",
    )

    def __post_init__(self) -> None:
        for name in ("num_draft", "depth", "window", "iterations"):
            if getattr(self, name) < 1:
                raise UsageError(f"aded needs a {name} of 1 or more, not {getattr(self, name)}")
        for name in ("delta", "cap", "prime_prompt"):
            if getattr(self, name) < 0:
                raise UsageError(f"aded needs a {name} of 0 or more, not {getattr(self, name)}")
        if not 0 < self.decay <= 1:
            raise UsageError(f"aded needs a decay above 0 and at most 1, not {self.decay}")

    def check(self, submission: Submission) -> None:
        open_table(self.table, submission.model)

    def decode(self, run: TreeRun) -> Work:
        table = run.shared_state(self, lambda: self._table(run)) if self.persist else self._table(run)
        text = list(run.known_text)
        table.raise_by(self.prime_prompt, text)
        begin = entered = len(text)
        while True:
            text += run.tokens[len(text) - begin :]
            if self.update == "paper":
                table.raise_by(self.delta, text[-self.window :])
            elif self.update == "once":
                table.raise_by(10 * self.delta, text[max(0, entered - 2) :])
                entered = len(text)
            table.fade()
            limits = DraftLimits(self.num_draft, self.depth + 1).within(run)
            tree = self._draft(run, table, text, limits) if limits.max_depth and len(text) > 1 else DraftTree()
            yield from verify_tree(run, steered(run, tree, limits), sample_and_match)

    def _table(self, run: TreeRun) -> AdaptiveTable:
        return AdaptiveTable(open_table(self.table, run.model), cap=self.cap, decay=self.decay)

    def _draft(self, run: TreeRun, table: AdaptiveTable, text: list[int], limits: DraftLimits) -> DraftTree:
        """Returns a tree behind the last committed token, which no pass has read yet."""
        follow, (a, b) = remembered(table), text[-2:]
        if self.search == "best_first":
            return best_first(follow, a, b, limits)
        search = TreeSearch(self.iterations, min(self.depth, limits.max_depth))
        root = search.run(follow, a, b, random.Random(mix(run.options.seed, run.tip.position)))
        return search.tree(root, follow, limits.max_nodes).cut(limits)


class AdaptiveTable:
    """A table of tri-grams with what was added to it since: weights that texts raise as they are written.

    Args:
        table: The table to begin with.
        cap: The most that a weight can become.
        size: How many contexts the table holds, those that were raised last.
        decay: What learned weights are multiplied by in each `fade`.
    """

    def __init__(self, table: NgramTable | None, *, cap: float = 3.0, size: int = 200_000, decay: float = 1.0) -> None:
        self.table, self.cap, self.size, self.decay = table, cap, size, decay
        self._raised: OrderedDict[tuple[int, int], dict[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._raised)

    def successors(self, a: int, b: int) -> Successors:
        """Returns what follows the tokens a, b, with its weight: from the table and from what was learned."""
        raised = self._raised.get((a, b))
        known = self.table.successors((a, b)) if self.table is not None else []
        if raised is None:
            return known
        return sorted({**dict(known), **raised}.items(), key=lambda pair: (-pair[1], pair[0]))

    def weight(self, a: int, b: int, c: int) -> float:
        """Returns the weight of c after a, b; 0 where it was never seen there."""
        return dict(self.successors(a, b)).get(c, 0.0)

    def raise_by(self, delta: float, tokens: Sequence[int]) -> None:
        """Adds `delta` to the weight of every triple in `tokens`, once for each time that it is there."""
        if delta == 0:  # a triple without weight would be a successor that can't be drawn
            return
        for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False):
            raised = self._raised.setdefault((a, b), {})
            self._raised.move_to_end((a, b))
            before = raised[c] if c in raised else self.weight(a, b, c)
            raised[c] = min(before + delta, self.cap)
        while len(self._raised) > self.size:
            self._raised.popitem(last=False)

    def fade(self) -> None:
        """Multiplies all that was learned by `decay`."""
        if self.decay != 1.0:
            for raised in self._raised.values():
                for token in raised:
                    raised[token] *= self.decay

    def reset(self) -> None:
        """Forgets what was learned."""
        self._raised.clear()


def remembered(table: AdaptiveTable) -> Follow:
    """Returns the table's `successors` for one search, each pair looked up once."""
    known: dict[tuple[int, int], Successors] = {}

    def follow(a: int, b: int) -> Successors:
        if (a, b) not in known:
            known[a, b] = table.successors(a, b)
        return known[a, b]

    return follow


def best_first(follow: Follow, a: int, b: int, limits: DraftLimits) -> DraftTree:
    """Returns the paths after the tokens a, b with the largest products of normalised weights.

    It finds much the same trees as Monte-Carlo tree search for a tenth of the time.
    """
    tree, order = DraftTree(), count()
    heap: list[tuple[float, int, int, int, int, int]] = []  # -log weight, order, parent, tokens of the pair, depth

    def push(weight: float, parent: int, a: int, b: int, level: int) -> None:
        found = follow(a, b)[:MAX_SUCCESSORS]
        total = sum(amount for _, amount in found)
        for token, amount in found:
            if amount > 0:
                heapq.heappush(heap, (weight - math.log(amount / total), next(order), parent, b, token, level))

    push(0.0, ROOT, a, b, 1)
    while heap and len(tree) < limits.max_nodes:
        weight, _, parent, before, token, level = heapq.heappop(heap)
        node = tree.add(parent, token, ORIGIN)
        if level < limits.max_depth:
            push(weight, node, before, token, level + 1)
    return tree


@dataclass
class SearchNode:
    """A node of the search: its pair of tokens, its visits, the sum of its scores, and its prior."""

    before: int
    token: int
    prior: float = 0.0
    visits: int = 0
    score: float = 0.0
    parent: SearchNode | None = None
    children: list[SearchNode] = field(default_factory=list)

    def path(self) -> list[int]:
        """Returns the tokens from the first one below the root down to this one."""
        tokens: list[int] = []
        node: SearchNode | None = self
        while node is not None and node.parent is not None:
            tokens.append(node.token)
            node = node.parent
        return tokens[::-1]


@dataclass(frozen=True)
class TreeSearch:
    """Monte-Carlo tree search (section 3.3) with the paper's constants."""

    iterations: int = 150
    """Iterations; s in the paper."""

    depth: int = 4
    """Depth of the search."""

    top: int = 24
    """Paths that are kept, the most visited ones."""

    c1: float = 32.0
    """c1 of the PUCT rule."""

    c2: float = 8.0
    """c2 of the PUCT rule."""

    def run(self, follow: Follow, a: int, b: int, draw: random.Random) -> SearchNode:
        """Searches from the pair a, b; returns the root."""
        root = SearchNode(a, b)
        for _ in range(self.iterations):
            node, level, weights = root, 0, 0.0
            while node.children and level < self.depth:
                node = max(node.children, key=self._puct)
                weights, level = weights + node.prior, level + 1
            if level < self.depth and (found := follow(node.before, node.token)):
                found = found[:MAX_SUCCESSORS]
                node.children = [SearchNode(node.token, token, weight, parent=node) for token, weight in found]
                node = node.children[0]  # the one with the largest prior
                weights, level = weights + node.prior, level + 1
            score = 1 + weights + self._rollout(follow, node, level, draw)
            at: SearchNode | None = node
            while at is not None:
                at.visits += 1
                at.score += score
                at = at.parent
        return root

    def tree(self, root: SearchNode, follow: Follow, nodes: int) -> DraftTree:
        """Returns the most visited paths, each extended by its most probable successor, in at most `nodes` nodes."""
        visited = []
        stack = list(root.children)
        while stack:
            node = stack.pop()
            if node.visits:
                visited.append(node)
                stack += node.children
        visited.sort(key=lambda node: (-node.visits, node.path()))
        best = visited[: self.top - 1]
        ahead = [(node, found[0][0]) for node in best if (found := follow(node.before, node.token))]
        tree = DraftTree()
        for path in [*(node.path() for node in best), *([*node.path(), token] for node, token in ahead)]:
            if not _add_path(tree, path, nodes):
                break
        return tree

    def _puct(self, node: SearchNode) -> float:
        if node.visits == 0:
            return math.inf
        assert node.parent is not None
        seen = node.parent.visits
        explore = self.c1 + math.log((seen + self.c2 + 1) / self.c2)
        return node.score / node.visits + explore * node.prior * math.sqrt(seen) / (1 + node.visits)

    def _rollout(self, follow: Follow, node: SearchNode, level: int, draw: random.Random) -> float:
        """Goes on to the full depth by weighted draws; returns the sum of the weights."""
        before, token, weights = node.before, node.token, 0.0
        while level < self.depth and (found := follow(before, token)):
            found = found[:MAX_SUCCESSORS]
            [(drawn, weight)] = draw.choices(found, [weight for _, weight in found])
            before, token, weights, level = token, drawn, weights + weight, level + 1
        return weights


def _add_path(tree: DraftTree, path: list[int], nodes: int) -> bool:
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


class TableProposer(Proposer):
    """A table of tri-grams as the draft of any method: `draft="table"`. It learns anew from each run's text."""

    name = ORIGIN

    def __init__(self, run: TreeRun, table: NgramTable | None, delta: float = 0.4) -> None:
        self._run, self._table, self._delta = run, AdaptiveTable(table), delta
        self._text: list[int] = []
        self._known = 0

    def propose(self, limits: DraftLimits) -> DraftTree:
        """Learns what the run has committed since, and returns the most probable paths behind it."""
        fresh = [*(() if self._text else self._run.known_text), *self._run.tokens[self._known :]]
        self._known = len(self._run.tokens)
        self._table.raise_by(self._delta, [*self._text[-2:], *fresh])
        self._text += fresh
        if len(self._text) < 2:
            return DraftTree()
        return best_first(remembered(self._table), self._text[-2], self._text[-1], limits)
