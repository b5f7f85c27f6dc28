"""A*-decoding: a queue of beginnings, each with what was lost on the way to it and what its reward says is missing.

The best beginning is taken from the queue, k steps are drawn after it, a scorer rates them, and they go into the queue,
until a finished text comes out. What a step costs is g, one minus the reward is h, and f = g + h decides. With `reopen`
a beginning that was expanded goes back at once, at a price, since k samples may hold no good step.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from outlay.engine.method import About, Work
from outlay.engine.request import Request
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.rewards.scorer import RunScorer
from outlay.search.agreement import agreed
from outlay.search.answers import answer_of, vote
from outlay.search.steps import COUNTS, Leaf, Steps, StepSearch

IDLE = 8  # expansions in a row without a new step, after which a beginning is not re-opened
COSTS = ("drop", "pathmax", "length", "none")


@dataclass(eq=False)
class State:
    """A beginning in the queue: g is what was paid on the way, h what its reward leaves open; the prompt has no h.

    `expanded` is how often steps were drawn after it, `steps` are those, each with whether it ends the text,
    and `idle` is how often in a row there was none that it didn't have.
    """

    leaf: Leaf
    g: float = 0.0
    h: float | None = None
    expanded: int = 0
    steps: set[tuple[bytes, bool]] = field(default_factory=set)
    idle: int = 0

    @property
    def f(self) -> float:
        """What the queue is sorted by."""
        return self.g + (self.h or 0.0)


@dataclass(frozen=True)
class AStar(StepSearch):
    """Best-first search over steps, by cost so far and reward."""

    k: int = 4
    """Steps that are drawn after a beginning."""
    edge_cost: Literal["drop", "pathmax", "length", "none"] = "drop"
    """What a step costs: the reward that it loses, the reward that it gains (then f never falls along a path), its
    length, or nothing."""
    reopen: float = 0.3
    """The price at which an expanded beginning goes back into the queue; 0: it doesn't."""
    n_solutions: int = 1
    """Finished texts that are taken from the queue; among several, a vote weighted by their rewards decides."""
    parallel: int = 1
    """Beginnings that are expanded at a time; 1 is exact A*."""
    beam_cap: int = 0
    """Beginnings that the queue holds at most; 0: no limit."""
    length_price: float = 1.0
    """With edge_cost=length: the cost of `max_tokens` tokens."""

    about: ClassVar[About] = About(
        name="astar",
        summary="a queue of beginnings, the best by cost and reward grown by k steps",
        paper="A*-decoding",
        family="search",
        spends="k steps and k scores an expansion",
        saves="tokens and scores, against best of n at the same accuracy",
        needs=("scorer",),
        exact=False,
        counts=COUNTS,
        texts=("step",),
    )

    def __post_init__(self) -> None:
        self.refuse_below_one("k", "n_solutions", "parallel")
        if self.edge_cost not in COSTS:
            raise UsageError(f"an edge of astar costs {', '.join(COSTS)}, not {self.edge_cost!r}")
        if self.reopen < 0 or self.beam_cap < 0 or self.length_price < 0:
            raise UsageError("reopen, beam_cap and length_price of astar are 0 or more")

    @property
    def at_a_time(self) -> int:
        return self.k

    def decode(self, run: TreeRun) -> Work:
        steps, scorer = self.begin(run, keep_logits=self.reopen > 0)
        queue, done = Queue(self.beam_cap), list[State]()
        queue.push(State(steps.root))
        while popped := queue.pop(self.parallel, done, self.n_solutions):
            for state in popped:
                state.expanded += 1
                run.mark(state.leaf.tip, expanded=state.expanded)
            children = yield from self._expand(run, steps, scorer, popped)
            for child in children:
                queue.push(child)
            for state in popped:
                if self.reopen and state.idle < IDLE:
                    state.g += self.reopen
                    queue.push(state)
                elif state.leaf is not steps.root:
                    state.leaf.release()
            for state in queue.cap():
                run.mark(state.leaf.tip, cut="the queue is full")
                if state.leaf is not steps.root:
                    state.leaf.release()
            run.offer(best_so_far([*done, *queue.states]).leaf.tip)
        best = yield from chosen(run, done)
        run.mark(best.leaf.tip, chosen="first out of the queue" if len(done) == 1 else "by vote")
        run.accept(best.leaf.tip)

    def _expand(
        self, run: TreeRun, steps: Steps, scorer: RunScorer, popped: Sequence[State]
    ) -> Generator[Request | list[Request], Any, list[State]]:
        """Draws k steps after each beginning, drops those that it has already, and has the others rated together."""
        branches = [(state, leaf) for state in popped for leaf in steps.branch(state.leaf, self.k)]
        yield from steps.grow([leaf for _, leaf in branches])
        kept = list[tuple[State, Leaf]]()
        for state, leaf in branches:
            if (leaf.step, leaf.ended) in state.steps:
                run.mark(leaf.tip, cut="another step says the same")
                leaf.release()
            else:
                state.steps.add((leaf.step, leaf.ended))
                kept.append((state, leaf))
        rewards = yield from scorer.rewards([leaf.tip for _, leaf in kept])
        run.count(expansions=len(popped))
        children = []
        for (state, leaf), reward in zip(kept, rewards, strict=True):
            h = 1 - reward
            cost = self.cost(state.h, h, leaf.step_tokens / run.max_tokens)
            children.append(State(leaf, state.g + cost, h))
            run.mark(leaf.tip, score=reward, f=children[-1].f, round=int(run.ledger.extras["expansions"]))
        for state in popped:
            state.idle = 0 if any(parent is state for parent, _ in kept) else state.idle + 1
            if state.h is None:  # the prompt has no reward of its own: its best step's
                state.h = min(child.h or 0.0 for child in children if child.leaf.above is state.leaf)
        return children

    def cost(self, before: float | None, after: float, length: float) -> float:
        """Returns what a step costs.

        Args:
            before: h before the step; None at the prompt, where the first step costs nothing.
            after: h after it.
            length: Its share of `max_tokens`.
        """
        if self.edge_cost == "length":
            return self.length_price * length
        if before is None or self.edge_cost == "none":
            return 0.0
        return max(0.0, after - before if self.edge_cost == "drop" else before - after)


class Queue:
    """Beginnings by f; among equals the deeper one first, then the older one."""

    def __init__(self, cap: int = 0) -> None:
        self._cap = cap
        self._heap: list[tuple[float, int, int, State]] = []
        self._ids = itertools.count()

    @property
    def states(self) -> list[State]:
        """All that it holds."""
        return [entry[-1] for entry in self._heap]

    def push(self, state: State) -> None:
        """Puts a beginning in."""
        heapq.heappush(self._heap, (state.f, -state.leaf.steps, next(self._ids), state))

    def pop(self, count: int, done: list[State], solutions: int) -> list[State]:
        """Takes out the next beginnings to expand, `count` at most; finished texts on the way go into `done`.

        Returns:
            The beginnings; none where `done` has as many `solutions` as are wanted, or the queue is empty.
        """
        popped: list[State] = []
        while self._heap and len(popped) < count:
            state = heapq.heappop(self._heap)[-1]
            if not state.leaf.ended:
                popped.append(state)
                continue
            done.append(state)
            if len(done) >= solutions:
                return []
        return popped

    def cap(self) -> list[State]:
        """Drops all but the best; returns what was dropped."""
        if not self._cap or len(self._heap) <= self._cap:
            return []
        ordered = sorted(self._heap)
        self._heap, dropped = ordered[: self._cap], ordered[self._cap :]
        return [entry[-1] for entry in dropped]


def best_so_far(states: Sequence[State]) -> State:
    """Returns the finished text with the smallest f, or the beginning with the smallest where none is finished."""
    begun = [state for state in states if state.h is not None]
    return min([state for state in begun if state.leaf.ended] or begun, key=lambda state: state.f)


def chosen(run: TreeRun, done: Sequence[State]) -> Generator[Request | list[Request], Any, State]:
    """Returns the best of the finished texts: of those with the answer that has most of the rewards, if any is read."""
    if len(done) == 1:
        return done[0]
    rewards = [1 - (state.h or 0.0) for state in done]
    answers = yield from agreed(run, [answer_of(state.leaf.data.decode(errors="replace")) for state in done])
    winner = vote(answers, rewards, [state.leaf.logprob for state in done])
    best = max(range(len(done)), key=lambda i: (winner is not None and answers[i] == winner, rewards[i], -i))
    return done[best]
