"""What the planner learns and chooses."""

from __future__ import annotations

import pytest

from outlay.speculation.planner import Asking, Average, Calibration, Candidates, Duel, Kept
from outlay.speculation.rounds import ROOT


def test_a_proposals_own_word_counts_until_more_is_known():
    calibration = Calibration()
    assert calibration.chance(0.8) == pytest.approx(0.8)
    for _ in range(400):
        calibration.observe(0.8, False)
    assert calibration.chance(0.8) < 0.06
    assert calibration.chance(0.1) == pytest.approx(0.1), "others are left as they are"
    for _ in range(800):
        calibration.observe(0.8, True)
    assert calibration.chance(0.8) > 0.9, "what is old fades"


def test_a_careful_choice_takes_what_is_hardly_known_for_less_likely():
    known, unknown = Calibration(), Calibration()
    for turn in range(200):
        known.observe(0.8, turn % 5 > 0)
    for by, taken in ((known, 1), (unknown, 0)):
        assert by.least(0.8) < by.chance(0.8)
        for careful in (False, True):
            candidates = Candidates(careful)
            candidates.add(ROOT, 1, "x", by, 0.8)
            assert len(candidates.chosen(lambda n: 0.6 * n, 10, 10)[0]) == (taken if careful else 1)
    assert Calibration(trust=0.01).least(0.5) == 0


def test_the_likeliest_nodes_that_pay_are_chosen():
    candidates, by = Candidates(), Calibration()
    a = candidates.add(ROOT, 1, "x", by, 0.6)
    candidates.add(ROOT, 2, "x", by, 0.3)
    b = candidates.add(a, 3, "x", by, 0.5)
    candidates.add(b, 4, "x", by, 0.1)
    tree, expected = candidates.chosen(lambda n: 0.25 * n, 10, 10)
    assert tree.tokens == [1, 2, 3] or tree.tokens == [1, 3, 2]
    assert expected == pytest.approx(0.6 + 0.3 + 0.3)
    assert candidates.chosen(lambda n: 0.25 * n, 1, 10)[0].tokens == [1]
    assert candidates.chosen(lambda n: 0.25 * n, 10, 1)[0].tokens == [1, 2]
    assert len(candidates.chosen(lambda n: 0.7 * n, 10, 10)[0]) == 0


def test_a_step_in_the_price_is_taken_where_what_follows_is_free():
    candidates, by = Candidates(), Calibration()
    for token, sure in ((1, 0.4), (2, 0.3), (3, 0.2)):
        candidates.add(ROOT, token, "x", by, sure)
    assert len(candidates.chosen(lambda n: 0.5, 10, 10)[0]) == 3, "none pays alone, all do together"
    assert len(candidates.chosen(lambda n: 0.1 if n < 3 else 0.5, 10, 10)[0]) == 2


def test_a_node_that_two_sources_propose_has_the_better_chance_and_both_learn():
    candidates, one, other = Candidates(), Calibration(), Calibration()
    candidates.add(ROOT, 1, "x", one, 0.2)
    candidates.add(ROOT, 1, "y", other, 0.7)
    tree, expected = candidates.chosen(lambda n: 0.0, 10, 10)
    assert tree.origins == ["y"]
    assert expected == pytest.approx(0.7)
    for _ in range(30):
        candidates.learn([1, 5])
    assert one.chance(0.2) > 0.7
    assert other.chance(0.7) > 0.85


def test_what_was_proposed_is_learned_from_as_far_as_the_text_is_known():
    candidates = Candidates()
    levels = [Calibration() for _ in range(3)]
    a = candidates.add(ROOT, 1, "x", levels[0], 0.5)
    b = candidates.add(a, 2, "x", levels[1], 0.5)
    candidates.add(b, 3, "x", levels[2], 0.5)
    for _ in range(50):
        candidates.learn([1, 9])
    assert levels[0].chance(0.5) > 0.85
    assert levels[1].chance(0.5) < 0.15
    assert levels[2].chance(0.5) == pytest.approx(0.5)


def test_an_average_forgets():
    average = Average(5.0, 4)
    for _ in range(40):
        average.observe(1.0)
    assert average.value == pytest.approx(1.0, abs=0.01)
    average.observe(2.0)
    assert average.value == pytest.approx(1.25)


def test_what_is_kept_of_what_was_expected_is_learned_and_forgotten():
    kept = Kept(0.9, 20.0)
    assert kept.share == pytest.approx(0.9)
    for turn in range(200):
        kept.observe(2.0, turn % 2)
    assert kept.share == pytest.approx(0.25, abs=0.12), "a half of two, with some of the first opinion"
    for _ in range(200):
        kept.observe(0.0, 0)
    assert kept.share == pytest.approx(0.9, abs=0.01), "nothing was drafted meanwhile: texts change"
    for _ in range(200):
        kept.observe(1.0, 3)
    assert kept.share == 1


def test_where_less_is_kept_fewer_nodes_are_worth_their_price():
    calibration, candidates, at = Calibration(), Candidates(), ROOT
    for token in range(8):
        at = candidates.add(at, token, "x", calibration, 0.8)
    sizes = []
    for kept in (1.0, 0.7, 0.4, 0.1):
        tree, expected = candidates.chosen(lambda n: 0.2 * n, 8, 8, kept)
        assert expected == pytest.approx(kept * sum(0.8**depth for depth in range(1, len(tree) + 1)))
        sizes.append(len(tree))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == 0


def test_in_a_duel_the_faster_kind_gets_longer_turns_and_the_slower_its_least():
    duel = Duel({True: 2, False: 4}, most=16)
    clock, drafted, rounds = 0, 0, 200
    for clock in range(rounds):
        drafting = duel.drafts_at(clock)
        drafted += drafting
        duel.observe_at(clock, drafting, 2 if drafting else 1, 4.0 if drafting else 1.0)
    assert duel.rate(False) == pytest.approx(1.0)
    assert duel.rate(True) == pytest.approx(0.5)
    assert duel.best == duel.rate(False)
    assert drafted / rounds < 0.2, "2 of 18, but for the first turns"


def test_where_drafting_has_been_faster_texts_share_its_long_turns():
    duel = Duel({True: 12, False: 6}, most=96)
    plain = drafted = 0
    for _text in range(40):
        kind, left = True, duel.trial(watching=False)
        for _round in range(20):
            if not left:
                kind = not kind
                left = duel.turn(kind)
            left -= 1
            duel.observe(kind, 2 if kind else 1, 1.0)
            drafted, plain = drafted + kind, plain + (not kind)
    assert duel.trial(watching=False) >= 12
    assert 0.02 < plain / drafted < 0.15, "6 of 96, but for the first turns; not 6 of 12 in each text"


def test_a_new_text_is_tried_for_a_shorter_time_where_drafting_has_been_slower():
    duel = Duel({True: 12, False: 6}, most=16)
    assert duel.trial(watching=False) == 12, "nothing is known"
    duel.observe(True, 2, 4.0)
    assert duel.trial(watching=False) == 12, "nor of rounds without drafts"
    duel.observe(False, 1, 1.0)
    assert duel.trial(watching=False) == 6
    for _ in range(100):
        duel.observe(True, 3, 1.0)
    assert duel.trial(watching=False) == 12


def test_drafts_that_have_been_slower_are_watched_until_they_would_pay_or_have_long_not_been_tried():
    duel = Duel({True: 12, False: 6}, most=16, untried=20)
    assert not duel.watches, "nothing is known"
    for _ in range(24):
        duel.observe(True, 2, 6.0)
        duel.observe(False, 1, 2.0)
    assert duel.watches
    assert duel.trial(watching=True) == 12
    for _ in range(100):
        duel.observe(False, 1, 1.0)  # the machine has become faster, for both kinds
    for _ in range(100):
        duel.observe_watched(2)
    assert duel.rate(True) / duel.rate(False) == pytest.approx(2 / 3, rel=0.03), "thrice the time of those without"
    assert duel.watches
    assert duel.overdue
    for _ in range(12):
        duel.observe_watched(5)
    assert not duel.watches
    duel.observe(True, 5, 3.0)
    assert not duel.overdue


def asked(asking, rounds, added, price=0.3, dear=1.0):
    """In how many of some rounds a draft is asked that adds so many tokens to each."""
    count = 0
    for place in range(rounds):
        if asking.asks(price, dear):
            asking.observe(added(place))
            count += 1
    return count


def test_a_draft_is_asked_where_it_adds_more_than_asking_costs():
    assert asked(Asking(), 300, lambda _: 0.4) == 300
    assert asked(Asking(), 300, lambda place: float(place % 2)) == 300, "half a token, on average"
    assert asked(Asking(), 300, lambda _: 0.5, price=0.6) <= 24, "not where tokens are made faster without it"


def test_a_draft_that_does_not_pay_is_tried_again_later_and_later():
    asking = Asking()
    first, later = asked(asking, 100, lambda _: 0.0), asked(asking, 1000, lambda _: 0.0)
    assert 6 <= first <= 24
    assert 6 <= later <= 36, "some times in a row, after 32, 64, 128 and 256 rounds"
    assert asked(asking, 300, lambda _: 0.9) > 30, "the text has changed"
    assert asking.pays(0.3)
    assert asked(asking, 300, lambda _: 0.9) == 300


def test_early_bad_luck_of_a_draft_is_made_good():
    asking = Asking()
    assert asked(asking, 40, lambda _: -0.5) < 20
    assert not asking.pays(0.3)
    assert asked(asking, 600, lambda place: 0.5) > 450


def test_trying_a_draft_that_has_much_to_read_first_takes_longer_to_begin():
    waits = []
    for dear in (1.0, 4.0):
        asking = Asking()
        asked(asking, 12, lambda _: 0.0)
        wait = next(place for place in range(300) if asking.asks(0.3, dear))
        waits.append(wait)
    assert waits[1] > 3 * waits[0] > 0


def test_runs_that_share_a_round_take_the_same_turn_and_one_tells_of_rounds_without_drafts():
    duel = Duel({True: 1, False: 1}, most=8)
    for clock in range(6):
        kinds = {duel.drafts_at(clock) for _ in range(5)}
        assert len(kinds) == 1
        for seconds in (1.0, 9.0, 9.0):  # of the same round
            duel.observe_at(clock, False, 1, seconds)
    assert duel.rate(False) == pytest.approx(1.0)
    assert Duel({True: 1, False: 1}, most=8).best == 0
