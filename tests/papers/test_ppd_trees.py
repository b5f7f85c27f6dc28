"""PPD's trees: the most valuable nodes, the prompt tokens that hang from them, and what is expected of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from outlay.decode.draft.ppd.sparse_tree import best_paths, fastest, plan_trees, stationary

# Accuracies that the authors' repository gives for Vicuna-7B: guesses 1 to 3, ranks 1 to 10.
VICUNA = [
    [0.483, 0.143, 0.074, 0.045, 0.031, 0.022, 0.017, 0.013, 0.009, 0.008],
    [0.263, 0.146, 0.081, 0.058, 0.043, 0.032, 0.026, 0.022, 0.019, 0.015],
    [0.164, 0.118, 0.081, 0.058, 0.046, 0.037, 0.031, 0.023, 0.024, 0.018],
]


def test_best_paths_are_those_of_an_enumeration():
    accuracy = [sorted(row, reverse=True) for row in VICUNA]
    every = [
        (path, math.prod(accuracy[level][rank] for level, rank in enumerate(path)))
        for depth in (1, 2, 3)
        for path in itertools.product(range(10), repeat=depth)
    ]
    expected = sorted((value for _, value in every), reverse=True)
    found = best_paths(accuracy, 300, 3)
    assert [value for _, value in found] == pytest.approx(expected[:300])
    assert len({path for path, _ in found}) == 300
    seen = {()}
    for path, _ in found:
        assert path[:-1] in seen, "a beginning comes first"
        seen.add(path)


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("length", [6, 8, 12, 16, 24])
def test_a_plan_keeps_to_its_length_and_its_trees_are_whole(m, length):
    plan = plan_trees(VICUNA[:m], length)
    assert plan.length <= length
    assert sum(plan.states) == pytest.approx(1)
    assert min(plan.states) > -1e-9
    for k, tree in enumerate(plan.trees, 1):
        assert tree.root == m
        assert all(1 <= prompts <= m for prompts in tree.prompts)
        assert all(len(path) <= k for path in tree.paths)
        assert all(path[:-1] in (*tree.paths, ()) for path in tree.paths)
        root, last = tree.last
        assert root + sum(last.values()) == pytest.approx(1)


def test_tokens_a_pass_are_those_of_the_specification():
    """Small lengths with the root and its prompt tokens counted, by the accuracies of Vicuna-7B."""
    expected = {
        1: {6: 1.63, 8: 1.70, 12: 1.78, 16: 1.82},
        2: {6: 1.48, 8: 1.63, 12: 1.80, 16: 1.89, 24: 2.00, 32: 2.07},
        3: {16: 1.87},
    }
    for m, taus in expected.items():
        for length, tau in taus.items():
            assert plan_trees(VICUNA[:m], length).tau == pytest.approx(tau, abs=0.01)


def test_more_rows_never_give_fewer_tokens():
    for m in (1, 2):
        found = [plan_trees(VICUNA[:m], length).tau for length in range(m + 4, 33)]
        assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(found))


def test_there_is_no_plan_without_room_for_one_guess():
    assert plan_trees(VICUNA[:1], 3) is None
    assert plan_trees(VICUNA[:2], 4) is None


def test_the_stationary_distribution_stays():
    moves = np.array([[0.2, 0.5, 0.3], [0.0, 0.1, 0.9], [0.6, 0.2, 0.2]])
    states = stationary(moves)
    assert states @ moves == pytest.approx(states)


def test_the_fastest_plan_depends_on_what_rows_cost_and_is_none_where_none_pays():
    free = fastest(VICUNA, lambda rows: 1.0, 16)
    assert free.length == 16
    dear = fastest(VICUNA, lambda rows: 1 + 0.1 * rows, 16)
    assert dear.length < 16
    assert fastest(VICUNA, lambda rows: float(rows), 16) is None


def test_a_tree_is_cut_to_a_depth():
    tree = plan_trees(VICUNA, 24).trees[-1]
    cut = tree.cut(1)
    assert all(len(path) == 1 for path in cut.paths)
    assert len(cut.paths) == len(cut.prompts) == len(cut.values)
    assert tree.cut(3) is tree
