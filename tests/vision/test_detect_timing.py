"""What calls take beside other work: calls in turn until the fastest agree, without what they waited."""

from __future__ import annotations

import random
import time

import pytest

from outlay.vision.detect import timing
from outlay.vision.detect.timing import Patience, Times, least, settled, timed_call


def busy(base, disturbed, seed=0):
    """Returns calls of some lengths of which a share take up to five times as long."""
    draw = random.Random(seed)

    def once(key):
        took = base[key] * (1 + draw.uniform(0, 4) * (draw.random() < disturbed) + draw.uniform(0, 0.01))
        return Times(took, took, 0.0)

    return once


def test_calls_of_which_most_are_disturbed_settle_on_their_own_time():
    base = {"a": 0.010, "b": 0.012, "c": 0.030}
    for seed in range(20):
        found = settled(list(base), busy(base, 0.6, seed))
        for key, each in found.items():
            assert each.agreed
            assert each.times.seconds == pytest.approx(base[key], rel=0.04)


def test_a_few_calls_are_not_enough_where_they_are_disturbed():
    base = {"a": 0.010}
    assert max(least(["a"], busy(base, 0.6, seed), 1)["a"].seconds for seed in range(20)) > 0.02


def test_calls_that_never_agree_end_and_say_so():
    count = 0

    def once(key):
        nonlocal count
        count += 1
        return Times(1e-3 * 1.5 ** (count % 7), 1.0)

    found = settled(["a"], once, Patience(calls=9, fastest=3, least=3))
    assert not found["a"].agreed
    assert count == 1 + 9


def test_calls_that_agree_in_a_slow_second_are_called_for_as_long_as_is_asked():
    calls = []

    def once(key):
        calls.append(key)
        return Times(0.02 if len(calls) <= 20 else 0.01, 0.01)

    assert settled(["a"], once, Patience())["a"].times.seconds == 0.02
    calls.clear()
    assert settled(["a"], once, Patience(span=0.5))["a"].times.seconds == 0.01
    calls.clear()
    settled(["a"], once, Patience(calls=12, span=0.5))
    assert len(calls) == 1 + 12


def test_long_calls_are_called_as_few_times_as_may_be():
    calls = []

    def once(key):
        calls.append(key)
        return Times(1.0 + len(calls), 1.0)

    settled(["a"], once, Patience(least=4, seconds=3.0))
    assert len(calls) == 1 + 4
    calls.clear()
    waiting = Patience(least=4, seconds=3.0)
    settled(["a"], lambda key: once(key)._replace(seconds=1e-3 * len(calls), waited=10.0), waiting)
    assert len(calls) == 1 + 4


def test_calls_are_made_in_turn_and_those_that_settled_are_left_alone():
    calls = []

    def once(key):
        calls.append(key)
        return Times(1.0 if key == "a" else float(len(calls)), 1.0)

    settled(["a", "b"], once, Patience(least=3, calls=5, seconds=1e9))
    assert calls[:8] == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert calls[8:] == ["b", "b"]


def test_the_least_of_rounds_leaves_out_what_is_dropped_after_the_first():
    calls = []

    def once(key):
        calls.append(key)
        return Times(len(calls), 10 - len(calls))

    found = least(["a", "b"], once, 2, lambda known: {"b"})
    assert calls == ["a", "b", "a", "b", "a"]
    assert found == {"a": Times(3, 5, 0.0)}


def test_what_a_call_waited_for_a_processor_is_not_its_time(tmp_path, monkeypatch):
    counted = tmp_path / "schedstat"
    counted.write_text("5 1000000 7\n")
    monkeypatch.setattr(timing, "WAITED", counted)
    clock = iter([10.0, 10.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    found = timed_call(lambda: counted.write_text("9 301000000 8\n"))
    assert found.seconds == pytest.approx(0.2)
    assert found.waited == pytest.approx(0.3)
    monkeypatch.setattr(timing, "WAITED", tmp_path / "none")
    clock = iter([10.0, 10.5])
    assert timed_call(lambda: None)[::2] == (0.5, 0.0)
