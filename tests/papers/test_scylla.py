"""Scylla (Yan et al. 2025): the properties of its specification, and its two laws of acceptance at small scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t as student

from outlay.errors import UsageError
from outlay.scaling import choice
from outlay.scaling.laws import Prediction, fit_joint, fit_loglinear
from outlay.scaling.points import Point, read_points
from outlay.scaling.regression import t_quantile

TOKENS = (25e3, 50e3, 100e3, 200e3, 400e3)
# The points that the specification measured on a small target: tau against tokens, and against layers.
MEASURED_TOKENS = [
    Point(tau, 0.05, tokens=tokens) for tokens, tau in zip(TOKENS, (1.61, 1.84, 2.01, 2.72, 3.13), strict=True)
]
MEASURED_LAYERS = [
    Point(tau, 0.05, layers=layers) for layers, tau in zip((1, 2, 4, 8), (2.72, 2.98, 3.16, 3.33), strict=True)
]


def noisy(seed, slope=0.35, intercept=1.2, noise=0.01):
    draw = np.random.default_rng(seed)
    return [Point(intercept + slope * math.log10(x) + draw.normal() * noise, noise, tokens=x) for x in TOKENS]


def test_a_fit_recovers_the_law():
    law = fit_loglinear(noisy(1), "tokens")
    assert law.slope == pytest.approx(0.35, rel=0.05)
    assert law.r2 > 0.99
    slopes = [fit_loglinear(noisy(seed), "tokens").slope for seed in range(200)]
    assert np.mean(slopes) == pytest.approx(0.35, rel=0.03)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """95 % of 1000 runs, within four standard errors."""
    laws = [fit_loglinear(noisy(seed), "tokens") for seed in range(1000)]
    covered = sum(low <= 0.35 <= high for low, high in (law.ci95 for law in laws)) / 1000
    assert 0.93 <= covered <= 0.97
    truth = 1.2 + 0.35 * 6
    drawn = [truth + np.random.default_rng(5000 + seed).normal() * 0.01 for seed in range(1000)]
    predicted = [law.predict(1e6) for law in laws]
    assert 0.93 <= sum(p.low <= y <= p.high for p, y in zip(predicted, drawn, strict=True)) / 1000 <= 0.97


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30])
def test_quantiles_are_those_of_students_t(freedom):
    for probability in (0.6, 0.9, 0.975, 0.999):
        assert t_quantile(probability, freedom) == pytest.approx(student.ppf(probability, freedom), rel=1e-6)


def test_a_curve_that_levels_off_is_not_called_log_linear():
    x = np.geomspace(1, 1000, 12)
    points = [Point(4 - 3 * v**-0.9, 0.01, tokens=v) for v in x]
    law = fit_loglinear(points, "tokens")
    assert not law.adequate
    assert law.best_form == "saturating"
    straight = fit_loglinear([Point(1 + 0.5 * math.log10(v), 0.01, tokens=v) for v in x], "tokens")
    assert straight.adequate


def test_predictions_are_kept_within_what_can_be_and_warn_beyond_the_data():
    law = fit_loglinear(MEASURED_TOKENS, "tokens", limits=(1.0, 6.0))
    assert law.predict(2e5).warning == ""
    far = law.predict(1e9)
    assert far.value == 6.0
    assert "beyond the data" in far.warning
    assert law.predict(10).value == 1.0
    with pytest.raises(UsageError, match="above 0"):
        law.predict(0)


def test_the_specifications_own_points_give_its_laws():
    tokens, layers = fit_loglinear(MEASURED_TOKENS, "tokens"), fit_loglinear(MEASURED_LAYERS, "layers")
    assert tokens.slope == pytest.approx(1.30, abs=0.02)
    assert tokens.r2 == pytest.approx(0.940, abs=0.003)
    assert layers.slope == pytest.approx(0.67, abs=0.01)
    assert layers.r2 == pytest.approx(0.991, abs=0.003)
    assert tokens.ci95[0] > 0
    assert layers.ci95[0] > 0


@pytest.mark.parametrize(
    ("points", "x", "match"),
    [
        (MEASURED_LAYERS[:3], "layers", "4 different values"),
        (MEASURED_TOKENS[:3] + MEASURED_TOKENS[:3], "tokens", "4 different values"),
        ([Point(1, tokens=x) for x in (1, 2, 3, 4)], "tokens", "span of 8 times"),
        ([Point(1, tokens=x) for x in (0, 2, 30, 4)], "tokens", "above 0"),
        ([*MEASURED_TOKENS, Point(0.5, tokens=1e6, what="alpha")], "tokens", "different kinds"),
        (MEASURED_TOKENS, "width", "tokens, layers or batch"),
    ],
)
def test_what_no_law_can_be_fitted_to_is_refused(points, x, match):
    with pytest.raises(UsageError, match=match):
        fit_loglinear(points, x)


def test_a_joint_law_takes_the_interaction_in_only_where_it_helps():
    plain = [
        Point(0.5 + 0.4 * math.log10(t) + 0.6 * math.log10(d), 0.01, tokens=t, layers=d)
        for t in (1e4, 1e5, 1e6)
        for d in (1, 2, 4)
    ]
    law = fit_joint(plain)
    predicted = law.predict(1e5, 8)
    assert predicted.value == pytest.approx(0.5 + 2.0 + 0.6 * math.log10(8), abs=0.02)
    assert predicted.low <= 0.5 + 2.0 + 0.6 * math.log10(8) <= predicted.high
    assert law.predict(1e5, 100).warning == "25 times beyond the data"
    crossed = [
        Point(point.value + 0.3 * math.log10(point.tokens) * math.log10(point.layers), 0.01, point.tokens, point.layers)
        for point in plain
    ]
    assert len(fit_joint(crossed).coefficients) == 4
    with pytest.raises(UsageError, match="vary in tokens and in layers"):
        fit_joint(MEASURED_TOKENS)
    along = [Point(1.0, tokens=10**n, layers=2**n) for n in range(6)]
    with pytest.raises(UsageError, match="unlike layers"):
        fit_joint(along)


def test_a_joint_laws_intervals_cover_the_truth():
    """Of 400 fits to noisy points, the interval of the slope-free prediction covers a new measurement 95 % of times."""
    covered = 0
    for seed in range(400):
        draw = np.random.default_rng(seed)
        points = [
            Point(0.5 + 0.4 * math.log10(t) + 0.6 * math.log10(d) + 0.05 * draw.normal(), 0.05, tokens=t, layers=d)
            for t in (1e4, 1e5, 1e6)
            for d in (1, 2, 4, 8)
        ]
        predicted = fit_joint(points).predict(3e5, 3)
        covered += (
            predicted.low <= 0.5 + 0.4 * math.log10(3e5) + 0.6 * math.log10(3) + 0.05 * draw.normal() <= predicted.high
        )
    assert 0.9 <= covered / 400 <= 0.98


@pytest.mark.parametrize("acceptances", [[0.8, 0.7, 0.6], [0.3], [1.0, 0.5, 0.5, 0.5, 0.9], [0.0, 1.0]])
def test_expected_tokens_are_those_of_a_simulation(acceptances):
    draw = np.random.default_rng(0)
    taken = (draw.random((200_000, len(acceptances))) < acceptances).cumprod(1).sum(1)
    error = taken.std() / math.sqrt(len(taken)) + 1e-9
    assert choice.expected_tokens(acceptances) == pytest.approx(1 + taken.mean(), abs=5 * error)


def test_a_chain_of_one_acceptance_is_the_closed_form():
    for share in (0.0, 0.3, 0.9, 1.0):
        for depth in (1, 4, 9):
            tokens = choice.chain_tokens(share, depth)
            assert tokens == pytest.approx(choice.expected_tokens([share] * depth))
            assert choice.even_acceptance(tokens, depth) == pytest.approx(share, abs=1e-6)
    assert choice.memory_bound_speedup(3.0, 0.05, 4) == pytest.approx(2.5)


def test_the_choice_is_the_best_of_an_enumeration_and_plain_decoding_where_none_is_sure():
    def tau(layers, depth):
        value = choice.chain_tokens(0.6 + 0.05 * math.log2(layers), depth)
        return Prediction(value, value - 0.2, value + 0.2)

    def seconds(layers, depth):
        return 8 + 0.3 * (depth + 1) + 0.4 * layers * depth

    best, every = choice.choose(tau, seconds, 8.3, tokens=1e6, batch=3)
    assert best == max(every, key=lambda each: each.throughput)
    assert best.layers in (1, 2)
    predicted = tau(best.layers, best.depth)
    took = seconds(best.layers, best.depth)
    assert best.throughput == pytest.approx(3 * predicted.value / took), "three requests"
    gains = [value * 8.3 / took for value in (predicted.value, predicted.low, predicted.high)]
    assert [best.speedup, best.low, best.high] == pytest.approx(gains)
    assert best.low > 1
    none, _ = choice.choose(tau, lambda layers, depth: 8.0 * (depth + 1), 8.0, tokens=1e6)
    assert none is None
    small, _ = choice.choose(tau, lambda layers, depth: 8.0, 8.0, tokens=1e6, fits=lambda layers: layers <= 2)
    assert small.layers == 2


def test_what_a_chain_gives_is_carried_over_to_other_depths():
    for share in (0.2, 0.7, 1.0):
        tau = Prediction(choice.chain_tokens(share, 5), 1.0, 6.0, "far")
        for depth in (1, 5, 8):
            found = choice.at_depth(tau, 5, depth)
            assert found.value == pytest.approx(choice.chain_tokens(share, depth))
            assert (found.low, found.high, found.warning) == (pytest.approx(1), pytest.approx(depth + 1), "far")


def test_points_are_read_from_a_table():
    assert read_points([{"value": 1.5, "tokens": 1000}]) == [Point(1.5, tokens=1000)]
    for bad in ({"tau": 1}, {"value": "x"}, 3):
        with pytest.raises(UsageError, match="point 1"):
            read_points([bad])
