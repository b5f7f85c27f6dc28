"""SpecTr's optimum as an oracle (Sun et al. 2023): the optimal transport with membership cost, for small vocabularies.

A coupling of k independent candidates with an output of distribution q is scored by the probability that the output is
among them. p is the distribution of the candidates, q the target's, both [vocab].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outlay.bench.drafts.rates import check_distributions
from outlay.errors import UsageError

MOST_SETS = 200_000


@dataclass(frozen=True)
class Coupling:
    """A coupling that attains the optimum, for small vocabularies: `flow[s]` is how much of the mass of the candidate
    set `sets[s]` goes to each of its tokens, in order; `rest` [vocab] is what is left of q."""

    sets: tuple[tuple[int, ...], ...]
    masses: tuple[float, ...]
    flow: tuple[tuple[float, ...], ...]
    rest: NDArray[np.float64]

    @property
    def acceptance(self) -> float:
        """How often the output is among the candidates."""
        return math.fsum(itertools.chain.from_iterable(self.flow))

    def sample(self, candidates: Sequence[int], generator: torch.Generator) -> int:
        """Returns an output for these candidates."""
        index = self.sets.index(tuple(sorted(set(candidates))))
        at = float(torch.rand((), generator=generator, dtype=torch.float64)) * self.masses[index]
        for token, amount in zip(self.sets[index], self.flow[index], strict=True):
            if at < amount:
                return token
            at -= amount
        edges = np.cumsum(self.rest)
        draw = float(torch.rand((), generator=generator, dtype=torch.float64)) * edges[-1]
        return int(np.searchsorted(edges, draw, side="right"))


def optimal_coupling(p: Tensor, q: Tensor, k: int) -> Coupling:
    """Returns an optimal coupling, by the greatest flow from sets of candidates to tokens. What matters of k candidates
    is their set, whose mass is found by inclusion and exclusion.

    Raises `UsageError` for more sets than can be handled.
    """
    check_distributions(p, q, k)
    support = [token for token, mass in enumerate(p.tolist()) if mass > 0]
    count = sum(math.comb(len(support), size) for size in range(1, k + 1))
    if count > MOST_SETS:
        raise UsageError(
            f"{count} sets of up to {k} candidates are too many for the optimum; K-SEQ takes any vocabulary"
        )
    law = p.double().numpy()
    sets = [each for size in range(1, min(k, len(support)) + 1) for each in itertools.combinations(support, size)]
    masses = [_mass(law, each, k) for each in sets]
    flow, left = _greatest_flow(sets, masses, q.double().numpy())
    return Coupling(tuple(sets), tuple(masses), tuple(map(tuple, flow)), np.maximum(left, 0.0))


def _mass(p: NDArray[np.float64], tokens: Sequence[int], k: int) -> float:
    """The probability that k draws give just this set."""
    total = 0.0
    for size in range(1, len(tokens) + 1):
        for part in itertools.combinations(tokens, size):
            total += (-1) ** (len(tokens) - size) * float(p[list(part)].sum()) ** k
    return max(total, 0.0)


def _greatest_flow(
    sets: Sequence[Sequence[int]], masses: Sequence[float], q: NDArray[np.float64]
) -> tuple[list[list[float]], NDArray[np.float64]]:
    """Sends as much of the sets' masses as q takes: first greedily, then along paths that give a token's mass to
    another set (augmenting paths, shortest first)."""
    left, spare = q.copy(), np.array(masses, dtype=np.float64)
    flow = [[0.0] * len(each) for each in sets]
    for index, tokens in enumerate(sets):
        for place, token in enumerate(tokens):
            amount = min(spare[index], left[token])
            flow[index][place] += amount
            spare[index] -= amount
            left[token] -= amount
    users: dict[int, list[tuple[int, int]]] = {}
    for index, tokens in enumerate(sets):
        for place, token in enumerate(tokens):
            users.setdefault(token, []).append((index, place))
    for index in range(len(sets)):
        while spare[index] > 1e-15 and _augment(index, sets, users, flow, spare, left):
            pass
    return flow, left


def _augment(
    source: int,
    sets: Sequence[Sequence[int]],
    users: dict[int, list[tuple[int, int]]],
    flow: list[list[float]],
    spare: NDArray[np.float64],
    left: NDArray[np.float64],
) -> bool:
    """Sends what a set has left along the shortest path to a token that has room; tells whether there was one."""
    came: dict[int, tuple[int, int, int | None, int]] = {}  # token: set, place there, token and place that it gave up
    frontier: list[tuple[int, int | None, int]] = [(source, None, 0)]
    seen = {source}
    while frontier:
        ahead: list[tuple[int, int | None, int]] = []
        for index, freed, given in frontier:
            for place, token in enumerate(sets[index]):
                if token in came or token == freed:
                    continue
                came[token] = (index, place, freed, given)
                if left[token] > 1e-15:
                    _send(token, source, came, flow, spare, left)
                    return True
                for other, where in users[token]:
                    if other not in seen and flow[other][where] > 1e-15:
                        seen.add(other)
                        ahead.append((other, token, where))
        frontier = ahead
    return False


def _send(
    token: int,
    source: int,
    came: dict[int, tuple[int, int, int | None, int]],
    flow: list[list[float]],
    spare: NDArray[np.float64],
    left: NDArray[np.float64],
) -> None:
    steps: list[tuple[int, int, int | None, int]] = []
    at: int | None = token
    amount = min(float(spare[source]), float(left[token]))
    while at is not None:
        step = came[at]
        steps.append(step)
        if step[2] is not None:
            amount = min(amount, flow[step[0]][step[3]])
        at = step[2]
    for index, place, freed, given in steps:
        flow[index][place] += amount
        if freed is not None:
            flow[index][given] -= amount
    spare[source] -= amount
    left[token] -= amount
