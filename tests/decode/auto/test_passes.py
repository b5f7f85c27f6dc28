"""What passes take at present, in `auto`."""

from __future__ import annotations

import pytest

from outlay.decode.draft.auto.passes import PassTime
from outlay.engine.request import PassReport
from outlay.speculation.costs import PassCosts

COSTS = PassCosts((1, 33), (1.0, 33.0), 0.0)


def report(rows, seconds):
    return PassReport(number=1, rows=rows, runs=1, seconds=seconds, cache_bytes=0)


def test_before_any_pass_it_is_what_was_measured():
    times = PassTime(COSTS, 10)
    assert times(5) == pytest.approx(5.0)
    assert times.marginal(4, 3, 0.0) == pytest.approx([0.0, 1.0, 2.0, 3.0])


def test_where_passes_take_longer_all_of_them_do():
    times = PassTime(COSTS, 10)
    for rows in (1, 4, 12) * 4:
        times.observe(report(rows, 2.0 * rows))
    assert times(5) == pytest.approx(10.0)
    assert times.marginal(4, 2, 0.0) == pytest.approx([0.0, 2.0, 4.0])


def test_a_pause_elsewhere_hardly_counts():
    times = PassTime(COSTS, 60)
    for _ in range(60):
        times.observe(report(4, 4.0))
    times.observe(report(4, 400.0))
    assert times(4) < 4.4
    times.observe(report(4, 0.0))  # a clock that is too coarse
    assert times(4) < 4.4
