"""Intervals against values known from theory, and the frontier."""

from __future__ import annotations

import math

import numpy as np
import pytest

from outlay.compare.statistics import frontier, mean, median


def test_equal_values_have_no_width():
    assert mean([2.5] * 7) == median([2.5] * 7) == (2.5, 2.5, 2.5)
    assert median([3.0]) == (3.0, 3.0, 3.0)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(10, 2, 400)
    found = mean(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean(), rel=1e-12)
    assert found.high - found.value == pytest.approx(half, rel=0.08)
    assert found.value - found.low == pytest.approx(half, rel=0.08)


def test_the_interval_of_a_share_is_that_of_the_binomial_distribution():
    found = mean([1.0] * 30 + [0.0] * 70)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 100)
    assert found.value == 0.3
    assert (found.low, found.high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.015)


def test_the_interval_of_a_median_is_that_of_its_order_statistics():
    """Of 100 values the 40th and the 61st hold the median with 95 % (binomial, two-sided)."""
    found = median([float(value) for value in range(1, 101)])
    assert found.value == 50.5
    assert found.low == pytest.approx(40.5, abs=1.5)
    assert found.high == pytest.approx(60.5, abs=1.5)


def test_the_interval_holds_the_median_as_often_as_it_says():
    """400 samples of 40: coverage 0.95 lies within 0.92 and 0.98 but for a chance of 1 in 100, bootstrap bias aside."""
    draw = np.random.default_rng(7)
    found = [median(draw.exponential(1.0, 40)) for _ in range(400)]
    covered = np.mean([low <= math.log(2) <= high for _, low, high in found])
    assert 0.92 <= covered <= 0.98


def test_the_same_values_give_the_same_interval():
    values = [1.0, 5.0, 2.0, 8.0, 3.0]
    assert median(values) == median(list(values))


def test_the_frontier_holds_what_nothing_beats():
    points = [(0.5, 10.0), (0.7, 20.0), (0.6, 25.0), (0.5, 12.0), (0.9, 90.0), None, (0.9, 90.0)]
    assert frontier(points) == [0, 1, 4, 6]
    assert frontier([None, None]) == []
