"""The acceptance model of `auto`: a source's own word, corrected by hits."""

from __future__ import annotations

import pytest

from outlay.decode.draft.auto.acceptance import AcceptanceModel, Calibration, Mean
from outlay.decode.draft.auto.config import AutoConfig


def test_a_sources_own_word_counts_until_more_is_known():
    calibration = Calibration("x", AutoConfig())
    assert calibration.probability(0.8) == pytest.approx(0.8)
    for _ in range(400):
        calibration.observe(0.8, False)
    assert calibration.probability(0.8) < 0.08
    assert calibration.probability(0.1) == pytest.approx(0.1), "others are left as they are"
    for _ in range(800):
        calibration.observe(0.8, True)
    assert calibration.probability(0.8) > 0.9, "what is old fades"


def test_it_is_a_probability_whatever_was_seen():
    calibration = Calibration("x", AutoConfig())
    for confidence in (0.0, 0.5, 1.0):
        for _ in range(500):
            calibration.observe(confidence, True)
        assert 0 <= calibration.probability(confidence) <= 1


def test_the_weight_of_the_own_word_and_the_bins_are_the_configurations():
    believed, doubted = (Calibration("x", AutoConfig(prior=prior)) for prior in (100.0, 1.0))
    coarse = Calibration("x", AutoConfig(bins=1))
    for calibration in (believed, doubted, coarse):
        for _ in range(20):
            calibration.observe(0.9, False)
    assert believed.probability(0.9) > 0.7 > 0.1 > doubted.probability(0.9)
    assert coarse.probability(0.6) < 0.2, "one bin from a half upwards"


def test_sources_and_levels_are_apart():
    model = AcceptanceModel(AutoConfig())
    assert model.of("x", 1) is model.of("x", 1)
    for _ in range(100):
        model.of("x", 1).observe(0.5, True)
    assert model.of("x", 1).probability(0.5) > 0.9
    assert model.of("x", 2).probability(0.5) == model.of("y", 1).probability(0.5) == pytest.approx(0.5)


def test_a_mean_forgets():
    mean = Mean(5.0, 4)
    for _ in range(40):
        mean.observe(1.0)
    assert mean.value == pytest.approx(1.0, abs=0.01)
    mean.observe(2.0)
    assert mean.value == pytest.approx(1.25)
    mean.fade(1)
    mean.observe(3.25)
    assert mean.value == pytest.approx(2.25), "what was known counts for one observation"
