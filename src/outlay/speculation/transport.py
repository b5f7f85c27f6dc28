"""How often a token can be taken from drafted ones and still have the target's law: optimal transport with membership
cost (SpecTr, Sun et al. 2023).

p is the law that candidates are drawn from, q the target's, both [vocab]; k candidates are drawn independently. A
coupling of the k candidates with an output of law q is judged by the probability that the output is among them.
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

from outlay.errors import UsageError

HALVINGS = 40
MOST_SETS = 200_000
SLACK = 1e-4  # by which a distribution may miss a sum of 1


def check(p: Tensor, q: Tensor, k: int = 1) -> None:
    """Raises `UsageError` unless p and q are distributions over one vocabulary and k is 1 or more."""
    for name, law in (("p", p), ("q", q)):
        if law.dim() != 1 or bool((law < 0).any()) or abs(float(law.double().sum()) - 1) > SLACK:
            raise UsageError(f"{name} must be a distribution: no negative entry, and a sum of 1")
    if p.shape != q.shape:
        raise UsageError(f"p has {len(p)} entries and q {len(q)}; they must be over one vocabulary")
    if k < 1:
        raise UsageError(f"k must be 1 or more, not {k}")


def single_acceptance(p: Tensor, q: Tensor) -> float:
    """Returns how often one candidate can be taken: the sum of min(p, q), 1 less the total variation."""
    return float(torch.minimum(p.double(), q.double()).sum())


def recursive_acceptance(p: Tensor, q: Tensor, k: int) -> float:
    """Returns how often recursive rejection takes one of k independent candidates (SpecInfer, Miao et al. 2024)."""
    p, rest, missed = p.double(), q.double(), 1.0
    for _ in range(k):
        taken = float(torch.minimum(p, rest).sum())
        missed *= 1 - taken
        rest = (rest - p).clamp_(min=0)
        total = float(rest.sum())
        if total <= 0:
            return 1.0
        rest /= total
    return 1 - missed


def kseq_rho(p: Tensor, q: Tensor, k: int) -> float:
    """Returns K-SEQ's rho*: the least rho in [1, k] for which the rest of q is nowhere negative.

    It is the root of 1 - (1 - beta)^k - rho beta with beta(rho) = sum min(p, q / rho), which falls; the upper end of
    the bisection is returned, so that the rest is not negative (SpecTr, section 4).
    """
    support = p > 0
    p, q = p[support].double(), q[support].double()

    def excess(rho: float) -> float:
        beta = min(float(torch.minimum(p, q / rho).sum()), 1.0)
        missed = math.expm1(k * math.log1p(-beta)) if beta < 1 else -1.0
        return -missed - rho * beta

    low, high = 1.0, float(k)
    if excess(low) <= 1e-15:
        return low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if excess(middle) > 0:
            low = middle
        else:
            high = middle
    return high


def kseq_acceptance(p: Tensor, q: Tensor, k: int, rho: float | None = None) -> float:
    """Returns how often K-SEQ takes one of k independent candidates, at rho (rho* by default)."""
    rho = kseq_rho(p, q, k) if rho is None else rho
    beta = min(float(torch.minimum(p.double(), q.double() / rho).sum()), 1.0)
    return 1.0 if beta >= 1 else -math.expm1(k * math.log1p(-beta))


def kseq_rest(p: Tensor, q: Tensor, k: int, rho: float) -> Tensor:
    """Returns the law, float64 [vocab], of the output when none of k candidates is taken at rho."""
    p, q = p.double(), q.double()
    accepted = kseq_acceptance(p, q, k, rho)
    beta = float(torch.minimum(p, q / rho).sum())
    rest = (q - torch.minimum(p, q / rho) * (accepted / beta if beta > 0 else 0.0)).clamp_(min=0)
    total = float(rest.sum())
    return rest / total if total > 0 else q


def optimal_acceptance(p: Tensor, q: Tensor, k: int) -> float:
    """Returns the most that any coupling can take one of k independent candidates.

    By max-flow and min-cut it is 1 + min over sets H of q(H) - p(H)^k, and the best H is a beginning of the tokens in
    ascending order of q / p, because t^k is convex.
    """
    check(p, q, k)
    p, q = p.double(), q.double()
    order = torch.where(p > 0, q / p.clamp_min(1e-300), torch.inf).argsort(stable=True)
    zero = torch.zeros(1, dtype=torch.float64)
    above, below = torch.cat([zero, q[order].cumsum(0)]), torch.cat([zero, p[order].cumsum(0)])
    return min(1.0, 1 + float((above - below.clamp(max=1) ** k).min()))


@dataclass(frozen=True)
class Plan:
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


def plan(p: Tensor, q: Tensor, k: int) -> Plan:
    """Returns an optimal coupling, by the greatest flow from sets of candidates to tokens. What matters of k candidates
    is their set, whose mass is found by inclusion and exclusion.

    Raises `UsageError` for more sets than can be handled.
    """
    check(p, q, k)
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
    return Plan(tuple(sets), tuple(masses), tuple(map(tuple, flow)), np.maximum(left, 0.0))


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
