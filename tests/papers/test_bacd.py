"""BACD: the worked traces, its bounds, and rounds on the noisy phrase source."""

from __future__ import annotations

import numpy as np
import pytest
from diffuse.made import places, proposals, random_case

import outlay
from outlay import UsageError
from outlay.diffuse.bacd import BACD
from outlay.diffuse.threshold import Threshold

NOISE = "exact-phrase:noise=0.05x0.1x0.15x0.2"
TRACES = [  # the confidences of each pass, and its threshold, what is filled, and the mean afterwards
    [([0.98, 0.97, 0.93, 0.80], 0.9, [0.98, 0.97, 0.93], 0.960), ([0.88], 0.9, [0.88], 0.940)],
    [
        ([0.82, 0.74, 0.70, 0.55], 0.82, [0.82], 0.820),
        ([0.84, 0.78, 0.62], 0.82, [0.84], 0.830),
        ([0.85, 0.80], 0.83, [0.85], 0.8367),
        ([0.79], 0.8367, [0.79], 0.825),
    ],
    [
        ([0.52, 0.45, 0.40, 0.35], 0.6, [0.52], 0.520),
        ([0.66, 0.58, 0.50], 0.6, [0.66], 0.590),
        ([0.64, 0.61], 0.6, [0.64, 0.61], 0.6075),
    ],
]


@pytest.mark.parametrize("trace", TRACES, ids="ABC")
def test_the_worked_traces(trace):
    history = []
    for confidence, threshold, filled, mean in trace:
        case = proposals(confidence, history=history)
        assert BACD().threshold(case) == pytest.approx(threshold, abs=1e-4)
        chosen = BACD().chosen(case)
        assert case.confidence[chosen].tolist() == filled
        history += filled
        assert np.mean(history) == pytest.approx(mean, abs=1e-4)


def test_its_threshold_stays_within_bounds_and_equal_bounds_are_a_fixed_one():
    rng = np.random.default_rng(1)
    for _ in range(1000):
        case = random_case(rng)
        case.block.filled.extend(rng.uniform(0, 1, rng.integers(0, 4)))
        assert 0.6 <= BACD().threshold(case) <= 0.9
        assert places(BACD(lower=0.9).chosen(case)) == places(Threshold(tau=0.9).chosen(case))
        assert BACD(lower=1.01, upper=1.01).chosen(case).sum() == 1


def test_ties_of_the_best_are_filled_together():
    assert places(BACD().chosen(proposals([0.8, 0.7, 0.8]))) == [0, 2]


def test_history_is_that_of_the_block_and_of_the_run():
    """Side by side, and with blocks one after the other, each run has the thresholds that it has alone."""
    lm = outlay.load(NOISE)
    prompts = ["^", "^kaad", "^rbvte", "^k"]
    together = [handle.result() for handle in [lm.submit(p, method="bacd:block=8", max_tokens=32) for p in prompts]]
    for prompt, result in zip(prompts, together, strict=True):
        alone = lm.generate(prompt, method="bacd:block=8", max_tokens=32)
        assert alone.facts == result.facts
        assert len(result.facts["tau"]) == result.ledger.rounds


def test_rounds_on_the_noisy_source_and_the_text_of_one_by_one():
    """The headline at small scale: 0.65 of threshold 0.9's rounds at most."""
    lm = outlay.load(NOISE)
    one, strict, bounded = (
        lm.generate("^", method=method, max_tokens=128) for method in ("threshold:tau=2", "threshold", "bacd")
    )
    assert bounded.tokens == strict.tokens == one.tokens
    assert bounded.ledger.rounds <= 0.65 * strict.ledger.rounds


def test_bounds_the_wrong_way_round_are_told():
    with pytest.raises(UsageError, match="at most upper"):
        BACD(lower=0.9, upper=0.6)
