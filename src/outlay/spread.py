"""Medians of measurements that were taken in rounds, and ratios that are paired by round.

A machine's speed drifts, so two numbers are only worth comparing when they were taken next to each other: a ratio is
the median of the ratios within the rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple


class Spread(NamedTuple):
    """A median with the least and the greatest value, or with an interval."""

    median: float
    low: float
    high: float


def spread(series: Sequence[float | None]) -> Spread | None:
    """Returns median, least and greatest of a series, None where no round has a value."""
    known = [value for value in series if value is not None]
    return Spread(median(known), min(known), max(known)) if known else None


def paired_ratio(ones: Sequence[float | None], others: Sequence[float | None]) -> Spread | None:
    """Returns the ratio of two series, an entry a round in each; None without a round that has both."""
    pairs = zip(ones, others, strict=False)
    return spread([one / other for one, other in pairs if one is not None and other])


def middle(series: Sequence[float | None]) -> float | None:
    """Returns the median of a series, None where no round has a value."""
    found = spread(series)
    return None if found is None else found.median
