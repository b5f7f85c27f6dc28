"""The tree of what is drafted."""

from __future__ import annotations

import torch

from outlay.speculation.rounds import ROOT, DraftLimits, DraftTree


def grown():
    tree = DraftTree(draft_probs={ROOT: torch.ones(2), 1: torch.zeros(2)})
    a = tree.add(ROOT, 7, "x")
    b = tree.add(ROOT, 8, "x")
    tree.add(b, 9, "y")
    tree.add(a, 7, "y")
    return tree


def test_nodes_know_their_depth_path_and_siblings():
    tree = grown()
    assert tree.depths == [1, 1, 2, 2]
    assert tree.depth == 2
    assert tree.path_tokens(2) == [8, 9]
    assert tree.path(3) == [0, 3]
    assert tree.children(ROOT) == [0, 1]
    assert tree.child(1, 9) == 2
    assert tree.child(1, 7) is None
    assert DraftTree().depth == 0


def test_a_token_that_is_drafted_again_is_counted():
    tree = grown()
    assert tree.add(ROOT, 8, "z") == 1
    assert tree.copies == [1, 2, 1, 1]
    assert tree.origins[1] == "x"
    assert len(tree) == 4


def test_a_chain_is_added_from_any_node():
    tree = grown()
    tree.add_chain([1, 2], "c", parent=2)
    assert tree.path_tokens(5) == [8, 9, 1, 2]


def test_a_cut_keeps_the_first_nodes_and_what_is_shallow():
    tree = grown()
    assert tree.cut(DraftLimits(10, 10)) is tree
    assert tree.cut(DraftLimits(3, 9)).tokens == [7, 8, 9]
    shallow = tree.cut(DraftLimits(10, 1))
    assert shallow.tokens == [7, 8]
    assert set(shallow.draft_probs) == {ROOT, 1}
    assert tree.cut(DraftLimits(1, 9)).tokens == [7]
    assert set(tree.cut(DraftLimits(1, 9)).draft_probs) == {ROOT}
