"""The candidates of a round of `auto`, and the tree that is chosen of them."""

from __future__ import annotations

import pytest

from outlay.decode.draft.auto.acceptance import Calibration
from outlay.decode.draft.auto.candidates import Candidates
from outlay.decode.draft.auto.config import AutoConfig
from outlay.speculation.rounds import ROOT


def calibration(source="x"):
    return Calibration(source, AutoConfig())


def linear(price, nodes=10):
    """The price of 0, 1, ... nodes."""
    return [price * count for count in range(nodes + 1)]


def test_the_most_probable_nodes_that_pay_are_chosen():
    candidates, by = Candidates(0.0), calibration()
    a = candidates.add(ROOT, 1, by, 0.6)
    candidates.add(ROOT, 2, by, 0.3)
    b = candidates.add(a, 3, by, 0.5)
    candidates.add(b, 4, by, 0.1)
    tree, expected = candidates.choose(linear(0.25), 10)
    assert tree.tokens == [1, 2, 3] or tree.tokens == [1, 3, 2]
    assert expected == pytest.approx(0.6 + 0.3 + 0.3)
    assert candidates.choose(linear(0.25, 1), 10)[0].tokens == [1]
    assert candidates.choose(linear(0.25), 1)[0].tokens == [1, 2]
    assert len(candidates.choose(linear(0.7), 10)[0]) == 0


def test_a_step_in_the_price_is_taken_where_what_follows_is_free():
    candidates, by = Candidates(0.0), calibration()
    for token, confidence in ((1, 0.4), (2, 0.3), (3, 0.2)):
        candidates.add(ROOT, token, by, confidence)
    assert len(candidates.choose([0, *[0.5] * 10], 10)[0]) == 3, "none pays alone, all do together"
    assert len(candidates.choose([0, 0.1, 0.1, 0.5], 10)[0]) == 2


def test_a_node_that_two_sources_propose_has_the_better_probability_and_both_learn():
    candidates, one, other = Candidates(0.0), calibration(), calibration("y")
    candidates.add(ROOT, 1, one, 0.2)
    candidates.add(ROOT, 1, other, 0.7)
    tree, expected = candidates.choose(linear(0.0), 10)
    assert tree.origins == ["y"]
    assert expected == pytest.approx(0.7)
    for _ in range(30):
        candidates.learn([1, 5])
    assert one.probability(0.2) > 0.7
    assert other.probability(0.7) > 0.85


def test_what_was_proposed_is_learned_from_as_far_as_the_text_is_known():
    candidates, levels = Candidates(0.0), [calibration() for _ in range(3)]
    a = candidates.add(ROOT, 1, levels[0], 0.5)
    b = candidates.add(a, 2, levels[1], 0.5)
    candidates.add(b, 3, levels[2], 0.5)
    for _ in range(50):
        candidates.learn([1, 9])
    assert levels[0].probability(0.5) > 0.85
    assert levels[1].probability(0.5) < 0.15
    assert levels[2].probability(0.5) == pytest.approx(0.5)


def test_improbable_paths_are_no_candidates():
    candidates, by = Candidates(0.1), calibration()
    a = candidates.add(ROOT, 1, by, 0.3)
    assert candidates.reach(a) == pytest.approx(0.3)
    assert candidates.add(a, 2, by, 0.3) is None, "0.09"
    assert candidates.add(ROOT, 3, by, 0.05) is None
    assert candidates.tree.tokens == [1]


def test_where_hits_are_rarer_fewer_nodes_are_worth_their_price():
    sizes = []
    for confidence in (0.9, 0.7, 0.5, 0.1):
        candidates, by, at = Candidates(0.0), calibration(), ROOT
        for token in range(8):
            at = candidates.add(at, token, by, confidence)
        tree, expected = candidates.choose(linear(0.2, 8), 8)
        assert expected == pytest.approx(sum(confidence**depth for depth in range(1, len(tree) + 1)))
        sizes.append(len(tree))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == 0
