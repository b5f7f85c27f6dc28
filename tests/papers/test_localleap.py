"""LocalLeap: the worked example, what holds for any confidences, and rounds on the noisy phrase source."""

from __future__ import annotations

import numpy as np
import pytest
from diffuse.made import places, proposals, random_case

import outlay
from outlay import Budget, UsageError
from outlay.diffuse.localleap import LocalLeap, adjacent
from outlay.diffuse.threshold import Threshold

EXAMPLE = [0.40, 0.78, 0.70, 0.95, 0.76, 0.74, 0.30, 0.80, 0.91, 0.60]
NOISE = "exact-phrase:noise=0.05x0.1x0.15x0.2"


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({"radius": 0}, [3, 8]),
        ({"radius": 1}, [3, 4, 7, 8]),
        ({"radius": 2}, [1, 3, 4, 7, 8]),
        ({"radius": 4}, [1, 3, 4, 7, 8]),
        ({"radius": 4, "decay": "linear"}, [3, 4, 7, 8]),
    ],
)
def test_the_worked_example(options, chosen):
    assert places(LocalLeap(**options).select(proposals(EXAMPLE, [2]))) == chosen


def test_without_an_anchor_one_position_is_filled():
    lowered = [min(c, 0.89) for c in EXAMPLE]
    assert places(LocalLeap().select(proposals(lowered, [2]))) == [3]


@pytest.mark.parametrize(("positions", "beside"), [([], 0), ([4], 0), ([1, 3, 5], 0), ([1, 2, 3, 7, 9, 10], 5)])
def test_relaxed_positions_beside_each_other_are_counted(positions, beside):
    assert adjacent(np.array(positions, int)).sum() == beside


def by_loops(rule, case):
    """The rule as the paper states it, position by position."""
    eligible = np.flatnonzero(case.eligible)
    chosen = {int(eligible[case.confidence[eligible].argmax()])}
    anchors = [i for i in eligible if case.confidence[i] >= rule.tau]
    for i in eligible:
        near = any(abs(i - a) <= rule.radius for a in anchors)
        if i in anchors or (near and case.confidence[i] >= rule.relaxed):
            chosen.add(int(i))
    return sorted(chosen)


def test_it_chooses_what_the_loops_choose_between_both_thresholds():
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        case = random_case(rng)
        rule = LocalLeap(radius=int(rng.integers(0, 6)))
        chosen = rule.select(case)
        assert places(chosen) == by_loops(rule, case)
        assert not (Threshold(tau=0.9).select(case) & ~chosen).any()
        assert not (chosen & ~Threshold(tau=0.75).select(case)).any()
        assert (LocalLeap(radius=0).select(case) == Threshold(tau=0.9).select(case)).all()
        assert (LocalLeap(relaxed=0.9).select(case) == Threshold(tau=0.9).select(case)).all()


def test_anchors_of_another_block_do_not_reach_into_this_one():
    case = proposals([0.5, 0.8, 0.95, 0.8], block=2)
    assert places(LocalLeap().select(case)) == [1]


def test_strict_ends_are_no_anchors_and_not_relaxed():
    case = proposals(EXAMPLE, [2], tokens=np.array([0, 0, 0, 5, 0, 0, 0, 5, 0, 0]), ends=frozenset({5}))
    assert places(LocalLeap(radius=1, strict_ends=True).select(case)) == [3, 8]
    assert places(LocalLeap(radius=1).select(case)) == [3, 4, 7, 8]


def test_a_budget_of_risk_leaves_out_the_least_sure_and_holds():
    sums = {
        left: places(LocalLeap().select(proposals(EXAMPLE, [2], left=lambda entry, x=left: x))) for left in (1, 0.5)
    }
    assert sums == {1: [1, 3, 4, 7, 8], 0.5: [3, 7, 8]}
    lm = outlay.load(NOISE)
    whole = lm.generate("^", method="localleap", max_tokens=64)
    assert whole.ledger.extras["risk"] > 2
    capped = lm.generate("^", method="localleap", max_tokens=64, budget=Budget(risk=1.5))
    assert capped.ledger.extras["risk"] <= 1.5
    assert (capped.finish_reason, capped.cap, len(capped.tokens)) == ("budget", "risk", 64)


def test_rounds_on_the_noisy_source_and_the_text_of_one_by_one():
    """The headline at small scale: 0.65 of threshold 0.9's rounds at most."""
    lm = outlay.load(NOISE)
    one, strict, leap = (
        lm.generate("^", method=method, max_tokens=128) for method in ("threshold:tau=2", "threshold", "localleap")
    )
    assert leap.tokens == strict.tokens == one.tokens
    assert leap.ledger.rounds <= 0.65 * strict.ledger.rounds
    assert 0 <= leap.ledger.extras["adjacent"] <= leap.ledger.extras["relaxed"] > 0


@pytest.mark.parametrize(
    ("options", "told"), [({"relaxed": 0.95}, "at most tau"), ({"radius": -1}, "radius must be 0 or more")]
)
def test_bad_options_are_told(options, told):
    with pytest.raises(UsageError, match=told):
        LocalLeap(**options)
