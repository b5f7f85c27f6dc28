"""The prefix cache: the longest match, one node for each cached token, planting without a walk along the path."""

from __future__ import annotations

import random

import pytest
import torch
from tree.toy import toy_config

from outlay.tree.cache import Cache
from outlay.tree.prefix import PrefixCache, common_length
from outlay.tree.token_tree import Tree


def toy_cache(limit=4096):
    return Cache(toy_config(), torch.float32, torch.device("cpu"), limit=limit)


def tree_of(cache, tokens, after=None):
    tree = Tree(cache, after=after)
    tree.append(tokens)
    return tree


def texts(seed, count=40):
    """Token lists over three tokens, so that they begin alike."""
    chance = random.Random(seed)
    return [[chance.randrange(3) for _ in range(chance.randrange(1, 12))] for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_the_longest_cached_prefix_is_found(seed):
    cache, prefixes, known = toy_cache(), PrefixCache(), []
    for text in texts(seed):
        longest = max((common_length(text, other) for other in known), default=0)
        node = prefixes.match(text)
        assert (node.position + 1 if node else 0) == longest
        assert [each.token for each in node.path()] == text[:longest] if node else longest == 0
        prefixes.insert(tree_of(cache, text[longest:], node).tip)
        known.append(text)


@pytest.mark.parametrize("seed", range(5))
def test_matching_after_a_known_node_finds_what_matching_from_the_root_does(seed):
    cache, prefixes = toy_cache(), PrefixCache()
    for text in texts(seed):
        prefixes.insert(tree_of(cache, text).tip)
    for text in texts(seed + 100):
        node, other = prefixes.match(text), tree_of(cache, text[:1])
        for above in [*node.path(), other.tip] if node else ():
            assert prefixes.match(text[above.position + 1 :], after=above) is node
        assert prefixes.match([], after=tree_of(cache, text).tip).position == len(text) - 1


def test_where_tokens_are_cached_already_the_cached_nodes_stay():
    cache, prefixes = toy_cache(limit=64), PrefixCache()
    first, second = tree_of(cache, [1, 2, 3]), tree_of(cache, [1, 2, 4])
    prefixes.insert(first.tip)
    prefixes.insert(second.tip)
    assert prefixes.match([1, 2]) is first.tip.parent
    assert prefixes.match([1, 2, 4]) is second.tip


def test_what_is_inserted_below_a_cached_node_needs_no_walk_to_the_root(monkeypatch):
    cache, prefixes = toy_cache(), PrefixCache()
    whole = tree_of(cache, [7] * 2000)
    prefixes.insert(whole.tip)
    below = tree_of(cache, [1, 2, 3], whole.tip)
    monkeypatch.setattr("outlay.tree.token_tree.Node.path", None)
    monkeypatch.setattr("outlay.tree.prefix.common_length", None)
    prefixes.insert(below.tip)
    assert prefixes.match([], after=whole.tip) is whole.tip
    monkeypatch.undo()
    assert prefixes.match([*[7] * 2000, 1, 2, 3]) is below.tip


def test_a_tree_on_a_path_has_the_spans_of_the_tree_that_grew_it():
    """Also where its slots are scattered, because others were freed."""
    chance, cache = random.Random(1), toy_cache()
    tree = Tree(cache)
    for _ in range(60):
        nodes = tree.extend([-1, *range(5)], range(6)) if chance.random() < 0.5 else tree.extend([-1] * 4, range(4))
        tree.keep(chance.choice(nodes))
        if chance.random() < 0.3:
            tree.append([9] * chance.randrange(40))
        spans = [[(span.base, span.start, span.count, span.slots) for span in each.spans] for each in (
            tree, Tree(cache, after=tree.tip), tree.fork())]  # fmt: skip
        assert spans[1] == spans[0] == spans[2]
        assert sum(span.count for span in tree.spans) == tree.tip.position + 1


def test_evicting_everything_leaves_nothing_behind():
    cache, prefixes = toy_cache(), PrefixCache()
    for text in texts(3):
        tree = tree_of(cache, text)
        prefixes.insert(tree.tip)
        tree.release()
    assert cache.in_use
    while prefixes.evict():
        pass
    assert cache.in_use == 0
    assert prefixes.match([0, 1, 2]) is None


@pytest.mark.parametrize(("one", "other", "length"), [
    ([], [1], 0), ([1], [2], 0), ([1, 2, 3], [1, 2, 3], 3), ([1, 2, 3, 4], [1, 2, 3], 3),
    ([1, 2, 3, 4, 5], [1, 2, 9, 4], 2),
    ([*range(100)], [*range(99), 0], 99),
])  # fmt: skip
def test_the_common_length_is_where_two_lists_part(one, other, length):
    assert common_length(one, other) == common_length(other, one) == length
