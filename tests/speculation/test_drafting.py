"""Trees that are drawn from a distribution: their siblings, how beams are conditioned, and what limits they keep to."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from papers.distributions import random_chain

from outlay.decode.draft import rsd
from outlay.decode.draft.rsd import descending_gumbels, stochastic_beam_search
from outlay.decode.draft.specinfer import affordable, independent_tree
from outlay.decode.draft.spectr import independent_texts
from outlay.engine.random import RandomStreams
from outlay.speculation.rounds import ROOT, Drafter, DraftLimits, TopTokens
from outlay.speculation.trees import distinct_tree, draw_distinct, topk_beams, topk_tree, tree_size

SIZE = 5


class Chain(Drafter):
    """The distribution of a Markov chain after token 0."""

    name = "chain"

    def __init__(self, rows):
        self.rows = rows.float()

    def sync(self):
        return True

    def topk(self, tree, places, k):
        yield from ()
        top = self._rows(tree, places).log().topk(k)
        return TopTokens(top.indices, top.values)

    def probs(self, tree, places):
        yield from ()
        return self._rows(tree, places)

    def _rows(self, tree, places):
        return torch.stack([self.rows[0 if place == ROOT else tree.tokens[place]] for place in places])


def limits(nodes=100, depth=100):
    return DraftLimits(nodes, depth)


def within(limits, depth):
    return limits._replace(max_depth=min(limits.max_depth, depth))


def run(seed):
    return SimpleNamespace(random=RandomStreams(seed), tip=SimpleNamespace(position=3))


def finished(growth):
    """What a generator that asks for nothing returns."""
    with pytest.raises(StopIteration) as stop:
        next(growth)
    return stop.value.value


@pytest.fixture(scope="module")
def chain():
    return Chain(random_chain(SIZE, 4))


@pytest.mark.parametrize("runs", [2000, pytest.param(8000, marks=pytest.mark.slow)])
def test_siblings_without_replacement_come_in_the_order_of_sequential_draws(chain, runs):
    """P(x1 = a, x2 = b) = p_a p_b / (1 - p_a): a chi-square test with a false-alarm rate of 1e-4."""
    from scipy.stats import chisquare

    p = chain.rows[0].double()
    counts = Counter()
    for seed in range(runs):
        tree = finished(distinct_tree(run(seed), chain, (2,), limits()))
        counts[tuple(tree.tokens)] += 1
    pairs = [(a, b) for a in range(SIZE) for b in range(SIZE) if a != b]
    expected = [runs * float(p[a] * p[b] / (1 - p[a])) for a, b in pairs]
    assert chisquare([counts[pair] for pair in pairs], expected, sum_check=False).pvalue > 1e-4


def test_a_distribution_of_few_tokens_gives_few_children():
    rows = torch.zeros(SIZE, SIZE)
    rows[:, 1], rows[:, 3] = 0.25, 0.75
    tree = finished(distinct_tree(run(0), Chain(rows), (4, 3), limits()))
    assert len(tree) == 2 + 4
    assert {tree.tokens[child] for child in tree.children(ROOT)} == {1, 3}


@pytest.mark.parametrize("location", [-4.0, 0.0, 3.0])
def test_gumbels_below_another_have_the_distribution_of_gumbels_that_are(location):
    """The second of them is a Gumbel at its location, given that it is below the first: false-alarm rate 1e-4."""
    from scipy.stats import kstest

    generator = torch.Generator().manual_seed(1)
    found = [descending_gumbels([0.0, location], 0.5, generator) for _ in range(2000)]
    assert all(first == 0.5 > second for first, second in found)
    below = math.exp(-math.exp(location - 0.5))
    test = kstest([second for _, second in found], lambda x: np.exp(-np.exp(location - np.minimum(x, 0.5))) / below)
    assert test.pvalue > 1e-4


def test_tokens_drawn_without_replacement_say_what_was_left():
    probs = torch.tensor([0.5, 0.0, 0.3, 0.2])
    for seed in range(50):
        drawn = draw_distinct(probs, 4, torch.Generator().manual_seed(seed))
        assert sorted(token for token, _ in drawn) == [0, 2, 3]
        assert [left for _, left in drawn] == pytest.approx(
            [1.0, 1.0 - float(probs[drawn[0].token]), float(probs[drawn[2].token])]
        )


def test_beams_are_different_texts_whose_first_children_inherit_their_parents_place(chain, monkeypatch):
    seen = []
    inner = rsd.descending_gumbels
    monkeypatch.setattr(rsd, "descending_gumbels", lambda *args: seen.append((inner(*args), args[1])) or seen[-1][0])
    for seed in range(20):
        seen.clear()
        tree = finished(stochastic_beam_search(run(seed), chain, 3, limits(depth=4)))
        assert len(tree) <= 12
        assert len({tuple(tree.path_tokens(node)) for node in range(len(tree))}) == len(tree)
        assert all(len([n for n in range(len(tree)) if tree.depths[n] == level]) == 3 for level in range(1, 5))
        assert all(max(psis) == largest and psis == sorted(psis, reverse=True) for psis, largest in seen)
        for place in (ROOT, *range(len(tree))):
            siblings = [tree.tokens[child] for child in tree.children(place)]
            assert len(set(siblings)) == len(siblings)


@pytest.mark.parametrize("runs", [1500, pytest.param(6000, marks=pytest.mark.slow)])
def test_stochastic_beams_draw_texts_without_replacement(chain, runs):
    """The first of the beams of length 2 is distributed as a text of the chain is: false-alarm rate 1e-4."""
    from scipy.stats import chisquare

    counts = Counter()
    for seed in range(runs):
        tree = finished(stochastic_beam_search(run(seed), chain, 3, limits(depth=2)))
        deepest = next(node for node in range(len(tree)) if tree.depths[node] == 2)
        counts[tuple(tree.path_tokens(deepest))] += 1
    p = chain.rows.double()
    texts = [(a, b) for a in range(SIZE) for b in range(SIZE)]
    expected = [runs * float(p[0][a] * p[a][b]) for a, b in texts]
    common = [i for i, amount in enumerate(expected) if amount >= 5]
    rest = runs - sum(expected[i] for i in common)
    observed = [counts[texts[i]] for i in common]
    observed, expected = [*observed, runs - sum(observed)], [*(expected[i] for i in common), rest]
    assert chisquare(observed, expected, sum_check=False).pvalue > 1e-4


def test_independent_draws_that_repeat_are_one_node_that_counts_them(chain):
    tree = finished(independent_tree(run(1), chain, (6, 2), limits()))
    assert sum(tree.copies[child] for child in tree.children(ROOT)) == 6
    assert len(tree.children(ROOT)) < 6
    assert all(sum(tree.copies[below] for below in tree.children(child)) == 2 for child in tree.children(ROOT))


def test_texts_share_what_they_begin_with_and_count_how_many_do(chain):
    tree = finished(independent_texts(run(2), chain, 5, limits(depth=3)))
    for level in range(1, 4):
        assert sum(tree.copies[node] for node in range(len(tree)) if tree.depths[node] == level) == 5
    for node in range(len(tree)):
        if below := tree.children(node):
            assert sum(tree.copies[child] for child in below) == tree.copies[node]


@pytest.mark.parametrize(
    ("growth", "shape"),
    [
        (lambda chain, limits: topk_tree(chain, (3, 2, 2), limits), 21),
        (lambda chain, limits: topk_beams(chain, 3, within(limits, 4)), 12),
        (lambda chain, limits: distinct_tree(run(0), chain, (3, 2, 2), limits), 21),
        (lambda chain, limits: stochastic_beam_search(run(0), chain, 3, within(limits, 4)), 12),
        (lambda chain, limits: independent_tree(run(0), chain, (3, 2, 2), limits), 21),
        (lambda chain, limits: independent_texts(run(0), chain, 4, within(limits, 4)), 16),
    ],
)
def test_a_tree_keeps_to_its_limits(chain, growth, shape):
    for nodes in (1, 2, 5, 11, 100):
        for depth in (1, 2, 3, 9):
            tree = finished(growth(chain, limits(nodes, depth)))
            assert 1 <= len(tree) <= min(nodes, shape)
            assert tree.depth <= depth


def test_what_is_drawn_independently_is_never_left_out_for_what_it_is():
    """Limits are kept by draws, not to the different tokens that they turn out to be."""
    assert affordable((2, 2, 1), 100) == [2, 2, 1]
    assert affordable((2, 2, 1), 9) == [2, 2]
    assert affordable((2, 2, 1), 5) == [2]
    assert affordable((4, 2), 3) == [3]
    assert affordable((4,), 0) == []
    assert tree_size((2, 2, 1)) == 10
    assert tree_size((3, 2, 2)) == 21


def test_the_most_probable_are_drafted_at_temperature_0(chain):
    tree = finished(topk_tree(chain, (2, 1), limits()))
    first = chain.rows[0].topk(2).indices.tolist()
    assert [tree.tokens[child] for child in tree.children(ROOT)] == first
    for child in tree.children(ROOT):
        assert tree.tokens[tree.children(child)[0]] == int(chain.rows[tree.tokens[child]].argmax())
    assert tree.draft_probs == {}
