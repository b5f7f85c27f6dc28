"""The gate of `auto`: the fastest arm is played, and the others are tried for a share of the time."""

from __future__ import annotations

from collections import Counter

import pytest

from outlay.decode.draft.auto.config import AutoConfig
from outlay.decode.draft.auto.gate import Arm, Gate, TrialCost

ARMS = [Arm.DRAFT, Arm.TEXT, Arm.PLAIN]
FREE = dict.fromkeys(Arm, TrialCost())


class Played:
    """Plays rounds, of which each arm takes so many seconds, and in which text and draft add so many tokens."""

    def __init__(self, gate):
        self.gate, self.index = gate, 0

    def __call__(self, rounds, seconds, text=0.0, draft=0.0, costs=FREE):
        """Returns how often each arm was played."""
        count = Counter()
        for place in range(self.index, self.index + rounds):
            arm = self.gate.choose(place, costs.__getitem__)
            given = {Arm.TEXT: text, Arm.DRAFT: draft}
            added = {which: given[which] for which in (Arm.TEXT, Arm.DRAFT) if which <= arm}
            self.gate.observe(arm, added, seconds[arm])
            count[arm] += 1
        self.index += rounds
        return count


def seconds(plain, text, draft=1.0):
    return {Arm.PLAIN: plain, Arm.TEXT: text, Arm.DRAFT: draft}


def test_every_arm_is_tried_at_first_in_order():
    config = AutoConfig(first_trial=8, trial=3)
    gate = Gate(ARMS, config)
    arms = []
    for index in range(14):
        arms.append(gate.choose(index, FREE.__getitem__))
        gate.observe(arms[-1], {arms[-1]: 1}, 1.0)
    assert arms == [Arm.DRAFT] * 8 + [Arm.TEXT] * 3 + [Arm.PLAIN] * 3


def test_an_arm_that_adds_nothing_is_left_before_its_turn_ends():
    gate = Gate(ARMS, AutoConfig(first_trial=8, trial=3))
    arms = []
    for index, added in enumerate([0, 1, 0, 0, 0, 0]):
        arms.append(gate.choose(index, FREE.__getitem__))
        gate.observe(arms[-1], {arms[-1]: added}, 1.0)
    assert arms == [Arm.DRAFT] * 5 + [Arm.TEXT]


def test_a_trial_is_expected_to_lose_no_more_than_rounds_in_vain():
    """Its rounds were long when it was tried first; now none can take more than a tenth longer."""
    counts = []
    for in_vain in (float("inf"), 0.1):
        play, times = Played(Gate([Arm.DRAFT, Arm.PLAIN], AutoConfig())), seconds(1.0, 1.0, 4.0)
        play(100, times)
        costs = {**FREE, Arm.DRAFT: TrialCost(in_vain=in_vain)}
        counts.append(play(100, seconds(1.0, 1.0, 1.1), costs=costs)[Arm.DRAFT])
    assert counts[0] < counts[1]


@pytest.mark.parametrize(
    ("best", "costs", "text", "draft"),
    [
        (Arm.PLAIN, seconds(1.0, 1.5, 2.0), 0.2, 0.2),
        (Arm.TEXT, seconds(1.0, 1.2, 2.0), 1.0, 0.1),
        (Arm.DRAFT, seconds(1.0, 1.2, 1.4), 0.2, 0.8),
    ],
)
def test_the_arm_of_the_most_tokens_a_second_is_played(best, costs, text, draft):
    gate = Gate(ARMS, AutoConfig())
    play = Played(gate)
    play(100, costs, text, draft)
    assert play(1000, costs, text, draft)[best] > 880
    assert gate.best is best
    added = sum((text, draft)[:best])
    assert gate.rate(best) == pytest.approx((1 + added) / costs[best])


def test_trials_lose_no_more_than_their_share_of_the_time():
    for share in (0.01, 0.05):
        play, costs = Played(Gate(ARMS, AutoConfig(exploration=share))), seconds(1.0, 1.5, 3.0)
        play(100, costs)
        count = play(4000, costs)
        lost = 0.5 * count[Arm.TEXT] + 2.0 * count[Arm.DRAFT]
        spent = sum(costs[arm] * rounds for arm, rounds in count.items())
        assert 0.5 * share < lost / spent < 1.2 * share


def test_an_arm_that_is_far_behind_is_tried_less_often():
    counts = []
    for slow in (1.2, 4.0):
        play, costs = Played(Gate([Arm.TEXT, Arm.PLAIN], AutoConfig())), seconds(1.0, slow)
        play(100, costs)
        counts.append(play(2000, costs)[Arm.TEXT])
    assert counts[0] > 5 * counts[1] > 0


def test_a_trial_that_has_much_to_read_first_waits_until_it_is_paid_for():
    waits = []
    for once in (0.0, 5.0):
        play, costs = Played(Gate([Arm.DRAFT, Arm.PLAIN], AutoConfig())), seconds(1.0, 1.0, 1.5)
        play(90, costs)
        wait = 0
        while not play(1, costs, costs={**FREE, Arm.DRAFT: TrialCost(once)})[Arm.DRAFT]:
            wait += 1
        waits.append(wait)
    assert waits[1] - waits[0] == pytest.approx(5.0 / 0.02, rel=0.05)


def test_an_arm_that_has_become_the_faster_one_is_found_and_played():
    play = Played(Gate([Arm.DRAFT, Arm.PLAIN], AutoConfig()))
    play(400, seconds(1.0, 1.0, 1.5), draft=0.2)
    later = play(1000, seconds(1.0, 1.0, 1.5), draft=1.5)
    assert later[Arm.DRAFT] > 700, "it was tried within 300 rounds, and one or two trials tell"
    back = play(1000, seconds(1.0, 1.0, 1.5), draft=0.0)
    assert back[Arm.PLAIN] > 850


def test_early_bad_luck_of_an_arm_is_made_good():
    play = Played(Gate([Arm.DRAFT, Arm.PLAIN], AutoConfig()))
    play(64, seconds(1.0, 1.0, 1.5), draft=0.3)
    assert play(1000, seconds(1.0, 1.0, 1.5), draft=0.8)[Arm.DRAFT] > 600


def test_a_round_of_an_arm_tells_what_the_one_before_would_have_given():
    gate = Gate(ARMS, AutoConfig(first_trial=3, trial=3))
    play = Played(gate)
    play(9, seconds(1.0, 1.2, 1.4), text=0.1, draft=1.0)
    assert gate.best is Arm.DRAFT
    for place in range(9, 200):
        gate.choose(place, FREE.__getitem__)
        gate.observe(Arm.DRAFT, {Arm.TEXT: 2, Arm.DRAFT: 0}, 1.4)
    assert gate.rate(Arm.TEXT) == pytest.approx(3 / 1.2, rel=0.1)
    assert gate.best is Arm.TEXT


def test_shadow_rounds_tell_of_tokens_and_not_of_seconds():
    gate = Gate([Arm.TEXT, Arm.PLAIN], AutoConfig(trial=6))
    play = Played(gate)
    play(200, seconds(1.0, 3.0), text=0.5)
    assert gate.best is Arm.PLAIN
    gate.fade(Arm.TEXT)
    for _ in range(6):
        gate.observe_shadow({Arm.TEXT: 5})
    assert gate.rate(Arm.TEXT) == pytest.approx((1 + (6 * 0.5 + 6 * 5) / 12) / 3.0)
    assert gate.best is Arm.TEXT


def test_rounds_without_a_time_tell_of_tokens_only():
    gate = Gate([Arm.TEXT, Arm.PLAIN], AutoConfig(first_trial=3))
    gate.observe(Arm.TEXT, {Arm.TEXT: 1}, None)
    assert gate.rate(Arm.TEXT) == 0
    gate.observe(Arm.TEXT, {Arm.TEXT: 1}, 4.0)
    assert gate.rate(Arm.TEXT) == pytest.approx(0.5)


def test_runs_that_share_a_pass_play_the_same_arm():
    gate = Gate(list(Arm), AutoConfig(first_trial=10, trial=6))
    arms = []
    for index in range(6):
        chosen = {gate.choose(index, FREE.__getitem__) for _ in range(5)}
        assert len(chosen) == 1
        arms += chosen
        for _ in range(5):
            gate.observe(arms[-1], {}, 1.0)
    assert arms == [Arm.PLAIN] * 2 + [Arm.TEXT] * 2 + [Arm.DRAFT] * 2, "all of their rounds count"
