"""The states of a PG-TD search, and how it chooses among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from outlay.tree.token_tree import Node

POLICIES = ("var_p_ucb", "p_ucb", "ucb")


class Ranked(NamedTuple):
    """One of the most probable tokens after a prefix."""

    token: int
    logit: float
    logprob: float
    """Under all logits of the prefix; 0 where nobody reads it."""


@dataclass(eq=False)
class State:
    """A prefix of a program: a decision node of the search with the edge that leads to it, or known by a completion.

    `n` counts the rollouts through the edge, and `q` is the best return of them. `prior` is the edge's probability
    among the `width` most probable tokens. `children` are the states after those, the most probable first, once the
    state is expanded. `ranked` is the tree-structure cache: what is most probable after the prefix. `program` is the
    sequence cache: what the prefix is completed to. `below` are all known states after one more token. `node` holds the
    last token's keys and values while they are kept. `reward` is that of a program which was rated.
    """

    parent: State | None
    token: int
    depth: int
    node: Node | None = None
    ended: bool = False
    logprob: float = 0.0
    prior: float = 0.0
    n: int = 0
    q: float = 0.0
    reward: float | None = None
    program: State | None = None
    ranked: Sequence[Ranked] = ()
    children: list[State] = field(default_factory=list)
    below: dict[int, State] = field(default_factory=dict)

    @property
    def visits(self) -> int:
        """N(s): the rollouts through the state, and one."""
        return 1 + self.n

    def path(self) -> list[State]:
        """The states from the first token to this one."""
        states: list[State] = []
        state: State | None = self
        while state is not None and state.parent is not None:
            states.append(state)
            state = state.parent
        return states[::-1]


def best_child(state: State, c: float, c_base: float, policy: str) -> State:
    """Returns the child with the highest score, the first among equals."""
    weight = exploration(state.visits, c, c_base, policy)
    return max(state.children, key=lambda child: score(child, weight, by_prior=policy != "ucb"))


def exploration(visits: int, c: float, c_base: float, policy: str) -> float:
    """Returns what bonuses at a state are multiplied by: beta(s) sqrt(ln N(s)), with beta(s) = c where it is constant.

    Args:
        visits: N(s), 1 or more.
        c: The constant of exploration.
        c_base: The scale on which the weight grows with the visits.
        policy: One of `POLICIES`.
    """
    beta = math.log((visits + c_base + 1) / c_base) + c if policy == "var_p_ucb" else c
    return beta * math.sqrt(math.log(visits))


def score(child: State, weight: float, *, by_prior: bool) -> float:
    """Returns Q(s, a) + beta(s) P(a|s) sqrt(ln N(s)) / (1 + n(s, a)), the paper's P-UCB; UCB leaves P out."""
    return child.q + weight * (child.prior if by_prior else 1.0) / (1 + child.n)


def back_up(state: State, reward: float) -> None:
    """Adds a return to every edge on the path. Transitions are deterministic, so an edge is worth its best return."""
    above: State | None = state
    while above is not None:
        above.n, above.q = above.n + 1, max(above.q, reward)
        above = above.parent


def priors(logits: Sequence[float]) -> list[float]:
    """Returns the softmax over the most probable tokens' logits alone."""
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]
