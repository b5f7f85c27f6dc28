"""What rounds take: timed with full chains, in turns, and interpolated between."""

from __future__ import annotations

from dataclasses import asdict

import pytest

import outlay.scaling.timing as timing_module
from outlay.scaling.timing import CostTiming, RoundCosts, SpeedTiming, batch_speeds, round_costs
from outlay.testing import tiny_lm


def test_speeds_are_points_in_the_batch_with_and_without_drafts():
    lm, shown, timing = tiny_lm(), [], SpeedTiming(turns=2, tokens=6)
    found = batch_speeds(lm, lm.draft("self:int4"), [[1, 2], [3]], (1, 3), lambda *at: shown.append(at), timing)
    assert list(found) == ["plain", "drafted"]
    for name, points in found.items():
        assert [point.batch for point in points] == [1, 3]
        assert all(point.value > 0 and point.error >= 0 for point in points)
        assert {point.what for point in points} == {f"tokens a second, {name}"}
    assert [(done, total) for _, done, total in shown] == [(turn, 6) for turn in range(6)]
    assert asdict(found["plain"][0])["layers"] == 1


def test_rounds_between_those_that_were_timed_are_on_a_line():
    costs = RoundCosts(1.0, {1: {1: 2.0, 4: 5.0, 8: 7.0}, 5: {1: 6.0, 4: 9.0, 8: 23.0}})
    for layers, depth, seconds in ((1, 1, 2.0), (5, 8, 23.0), (1, 2, 3.0), (1, 6, 6.0), (3, 1, 4.0), (2, 6, 8.5)):
        assert costs(layers, depth) == pytest.approx(seconds)


@pytest.mark.parametrize(("batch", "turns"), [(1, 3), (3, 1)])
def test_rounds_are_timed_with_full_chains_and_without_what_reading_the_prompt_takes(monkeypatch, batch, turns):
    """Every timed run has as many target passes as is said, and drafts a whole chain in each."""
    lm, shown, runs = tiny_lm(), [], []
    inner, timing = timing_module.timed, CostTiming(turns=turns, warmup=1, rounds=4)

    def record(*args):
        runs.append((args, inner(*args)))
        return runs[-1][1]

    monkeypatch.setattr(timing_module, "timed", record)
    found = round_costs(lm, (1, 2), 60, batch, lambda *at: shown.append(at), timing)
    assert list(found.drafted) == [1, 2]
    assert found.plain > 0
    turns = timing.warmup + timing.turns
    assert len(runs) == len(shown) == turns * (1 + 2 * len(timing.depths))
    seconds = {}
    for place, ((_, prompts, method, draft, *_), (took, done)) in enumerate(runs):
        depth = getattr(method, "depth", 0)
        assert len(prompts) == len(done) == batch
        assert len({tuple(prompt) for prompt in prompts}) == batch, "none shares another's text"
        for result in done:
            assert result.ledger.target_passes == timing.rounds
            assert result.ledger.target_tokens == timing.rounds * (depth + 1)
            assert result.ledger.drafted == timing.rounds * depth
        if place >= timing.warmup * (1 + 2 * len(timing.depths)):
            kind = (draft.decoder.config.num_layers if draft is not None else 0, depth)
            seconds.setdefault(kind, []).append(took / timing.rounds)
    middle = {kind: sorted(each)[len(each) // 2] for kind, each in seconds.items()}
    assert middle.pop((0, 0)) == found.plain
    assert middle == {(layers, depth): found.drafted[layers][depth] for layers in (1, 2) for depth in timing.depths}
