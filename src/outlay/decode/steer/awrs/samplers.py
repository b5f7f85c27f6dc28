"""Adaptive weighted rejection sampling of one token: in each variant a random pair (x, w) that is properly weighted.

For every token v that is accepted, E[w 1{x = v}] = p(v). A sampler is a generator that asks, token by token, whether
one is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, NamedTuple

from outlay.decode.steer.awrs.order import Distribution, Order, Visit

VARIANTS = ("auto", "two_loop", "recursive", "geometric")
PEAKED = 2 / 3  # from this probability of the most probable token on, the geometric variant needs fewer checks


class Drawn(NamedTuple):
    """An accepted token and the logarithm of its weight; no token and -inf where none is accepted."""

    token: int | None
    log_weight: float


DEAD = Drawn(None, -math.inf)
Sampling = Generator[int, Any, Drawn]
"""Asks for checks of tokens, answered by a bool, and for `REST`, answered by float64 [vocab]."""


def adaptive(p: Distribution) -> Sampling:
    """Rejection without replacement and without a weight: x is distributed as by a mask."""
    found, _ = yield from _first_accepted(p.order(0))
    return DEAD if found is None else Drawn(found.token, 0.0)


def two_loop(p: Distribution) -> Sampling:
    """The paper's algorithm: a second loop, over what the first one has not rejected, estimates the accepted mass."""
    found, rejected = yield from _first_accepted(p.order(0))
    if found is None:
        return DEAD
    mass = math.fsum(math.exp(each.logprob) for each in rejected)
    second = p.order(1, [each.token for each in rejected])
    _, again = yield from _first_accepted(second, found.token)
    return Drawn(found.token, math.log1p(-min(mass, 1.0)) - math.log(len(rejected) + len(again) + 1))


def recursive(p: Distribution) -> Sampling:
    """One loop and one token more, by E f(X) = p(x) f(x) + (1 - p(x)) E[f(X) | X != x]. The lowest variance."""
    order, mass, log_weight = p.order(0), 0.0, 0.0
    visit = yield from order.visit()
    while visit is not None:
        accepted, following = (yield visit.token), None
        if accepted:
            following = yield from order.visit()
            if following is None or (yield following.token):
                return Drawn(visit.token, log_weight)
            return Drawn(visit.token, log_weight + _conditional(visit, mass))
        log_weight += _log1mexp(_conditional(visit, mass))
        mass += math.exp(visit.logprob)
        visit = yield from order.visit()
    return DEAD


def geometric(p: Distribution, accepts: int = 2, rejects: float = math.inf) -> Sampling:
    """As with replacement: draws of tokens that were rejected before are counted, not made. Good for peaked p.

    Args:
        p: The distribution.
        accepts: Loops, each up to an accepted token; 2 or more.
        rejects: Rejections after which the sampler stops.
    """
    removed: dict[int, float] = {}
    accepted: set[int] = set()
    found: int | None = None
    count = rejections = 0.0
    for loop in range(accepts):
        order, place = p.order(loop, list(removed)), 0
        while rejections < rejects:
            mass = math.fsum(removed.values())
            if removed:
                rejections += _failures(1 - mass, p.uniform(loop, place))
                place += 1
            visit = (yield from order.visit()) if rejections < rejects else None
            if visit is None:
                break
            if visit.token in accepted or (yield visit.token):
                accepted.add(visit.token)
                found, count = visit.token if found is None else found, count + 1
                break
            removed[visit.token] = math.exp(visit.logprob)
            rejections += 1
    if found is None:
        return DEAD
    return Drawn(found, math.log(min(accepts - 1, count)) - math.log(count + min(rejections, rejects) - 1))


def sampler_for(p: Distribution, variant: str, accepts: int, rejects: float, proper: bool) -> Sampling:
    """Returns the sampler of a variant; "auto" chooses by the shape of p and by how many accepts are asked for."""
    if not proper:
        return adaptive(p)
    if variant == "auto":
        variant = "geometric" if accepts > 2 or p.largest >= PEAKED else "recursive"
    if variant == "geometric":
        return geometric(p, accepts, rejects)
    return two_loop(p) if variant == "two_loop" else recursive(p)


def _first_accepted(order: Order, known: int | None = None) -> Generator[int, Any, tuple[Visit | None, list[Visit]]]:
    """Returns the first accepted token, and those that were rejected before it. `known` is accepted already."""
    rejected: list[Visit] = []
    while True:
        visit = yield from order.visit()
        if visit is None or visit.token == known or (yield visit.token):
            return visit, rejected
        rejected.append(visit)


def _conditional(visit: Visit, mass: float) -> float:
    """Returns the log-probability of a token where `mass` was taken out before it; at most 0."""
    return min(0.0, visit.logprob - math.log1p(-mass)) if mass < 1 else 0.0


def _log1mexp(x: float) -> float:
    """Returns log(1 - exp(x)) for x <= 0 (Maechler 2012)."""
    if x == 0:
        return -math.inf
    return math.log(-math.expm1(x)) if x > -math.log(2) else math.log1p(-math.exp(x))


def _failures(success: float, number: float) -> float:
    """Returns how many draws fail before the first success, by inversion of a uniform number."""
    if success <= 0:
        return math.inf
    return math.floor(math.log1p(-number) / math.log1p(-success)) if success < 1 else 0.0
