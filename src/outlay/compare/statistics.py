"""Medians and means with 95 % intervals, by the bootstrap (Efron 1979, percentile intervals), and Pareto frontiers.

Prompts are resampled, since runs of one prompt are not independent. The draws are seeded, so the same runs give the
same intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
Statistic = Callable[..., NDArray[np.float64]]


class Interval(NamedTuple):
    """A statistic with its interval: it lies from `low` to `high` in 95 % of the resamples."""

    value: float
    low: float
    high: float


def median(values: Sequence[float]) -> Interval:
    """Returns the median of values that are not empty, with its interval."""
    return _bootstrap(values, np.median)


def mean(values: Sequence[float]) -> Interval:
    """Returns the mean of values that are not empty, with its interval."""
    return _bootstrap(values, np.mean)


def ratio(ones: Sequence[float], others: Sequence[float]) -> Interval:
    """Returns the ratio of the means of two series of the same prompts, which are resampled together."""
    return _paired(ones, others, lambda one, other: one / other)


def difference(ones: Sequence[float], others: Sequence[float]) -> Interval:
    """Returns the difference of the means of two series of the same prompts, which are resampled together."""
    return _paired(ones, others, lambda one, other: one - other)


def frontier(points: Sequence[tuple[float, float] | None]) -> list[int]:
    """Returns the indices of the (quality, cost) points that no other point dominates."""
    known = [(index, point) for index, point in enumerate(points) if point is not None]
    return [index for index, point in known if not any(_dominates(other, point) for _, other in known)]


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] <= other[1]


def _bootstrap(values: Sequence[float], statistic: Statistic) -> Interval:
    array = np.asarray(values, dtype=np.float64)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(statistic(array[_draws(len(array))], axis=1), [tail, 100 - tail])
    return Interval(float(statistic(array)), float(low), float(high))


def _paired(ones: Sequence[float], others: Sequence[float], compared: Statistic) -> Interval:
    one, other = np.asarray(ones, dtype=np.float64), np.asarray(others, dtype=np.float64)
    draws, tail = _draws(len(one)), 100 * (1 - LEVEL) / 2
    low, high = np.percentile(compared(one[draws].mean(1), other[draws].mean(1)), [tail, 100 - tail])
    return Interval(float(compared(one.mean(), other.mean())), float(low), float(high))


@cache
def _draws(count: int) -> NDArray[np.intp]:
    """Returns the indices of all resamples, [RESAMPLES, count], the same for every statistic of `count` values."""
    return np.random.default_rng(count).integers(0, count, (RESAMPLES, count))
