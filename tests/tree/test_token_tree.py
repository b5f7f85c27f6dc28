"""Properties of the token tree: whatever is grown, kept, forked and freed, logits are those of a fresh pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tree.toy import VOCAB, Toy, toy_config

from outlay.errors import FailureError
from outlay.tree.plan import plan_pass
from outlay.tree.token_tree import Tree


def tokens_of(node):
    return [above.token for above in node.path()]


def assert_fresh(toy, logits):
    for node, row in logits.items():
        torch.testing.assert_close(row, toy.fresh(tokens_of(node)), rtol=1e-4, atol=1e-4)


class TreeProperties(RuleBasedStateMachine):
    """Random sequences of extend, keep, prune, free and fork over a few trees that share one cache."""

    toy = Toy()
    windowed = False

    def __init__(self):
        super().__init__()
        self.cache = self.toy.cache(capacity=16)
        self.trees = [Tree(self.cache, reserve=5)]
        self.trees[0].append([1, 2, 3])
        self.computed = set()
        self._compute(self.trees[0], self.trees[0].tip.path())

    def _compute(self, *work):
        pairs = list(zip(work[::2], work[1::2], strict=True))
        logits = self.toy.compute(self.cache, pairs)
        assert not self.computed & set(logits), "a node was computed twice"
        self.computed |= set(logits)
        self.check(logits)

    def check(self, logits):
        assert_fresh(self.toy, logits)

    def _tree(self, data):
        return data.draw(st.sampled_from(self.trees))

    def _open(self, tree):
        return [tree.tip, *tree.tentative]

    @rule(data=st.data(), count=st.integers(1, 6))
    def extend(self, data, count):
        tree = self._tree(data)
        grown = []
        for _ in range(count):
            parent = data.draw(st.sampled_from([*self._open(tree), *grown]))
            grown += tree.extend([parent], [data.draw(st.integers(0, VOCAB - 1))])
        self._compute(tree, grown)

    @rule(data=st.data())
    def keep(self, data):
        tree = self._tree(data)
        node = data.draw(st.sampled_from(self._open(tree)))
        below = [each for each in tree.tentative if each is not node and node in each.path()]
        behind = data.draw(st.lists(st.sampled_from(below), max_size=2)) if below else []
        tree.keep(node, behind)
        assert tree.tip is node
        assert set(tree.tentative) == {above for each in behind for above in each.path(node)}

    @rule(data=st.data())
    def prune(self, data):
        tree = self._tree(data)
        kept = data.draw(st.lists(st.sampled_from(self._open(tree)), max_size=3))
        tree.prune(kept)
        assert set(tree.tentative) == {above for node in kept for above in node.path(tree.tip)}

    @rule(data=st.data())
    def free(self, data):
        tree = self._tree(data)
        if tree.tentative:
            node = data.draw(st.sampled_from(list(tree.tentative)))
            tree.free(node)
            assert node not in tree.tentative
            assert all(node not in tentative.path() for tentative in tree.tentative)

    @rule(data=st.data(), count=st.integers(1, 4))
    def append(self, data, count):
        tree = self._tree(data)
        tree.prune(())
        before = tree.tip
        tree.append([data.draw(st.integers(0, VOCAB - 1)) for _ in range(count)])
        self._compute(tree, tree.tip.path(before))

    @rule()
    def squeeze(self):
        """As where the cache is full: what regions hold back for later goes to whoever asks next."""
        self.cache._trim_regions()
        assert all(region.size == region.top for region in self.cache._regions)

    @precondition(lambda self: len(self.trees) < 4)
    @rule(data=st.data())
    def fork(self, data):
        tree = self._tree(data)
        used = self.cache.in_use
        self.trees.append(tree.fork(data.draw(st.sampled_from(self._open(tree)))))
        assert self.cache.in_use == used

    @precondition(lambda self: len(self.trees) > 1)
    @rule(data=st.data())
    def release(self, data):
        tree = self._tree(data)
        self.trees.remove(tree)
        tree.release()

    @precondition(lambda self: len(self.trees) > 1)
    @rule(data=st.data())
    def grow_all_in_one_pass(self, data):
        work = []
        for tree in self.trees:
            parents = data.draw(st.lists(st.sampled_from(self._open(tree)), min_size=1, max_size=3))
            work += [tree, tree.extend(parents, [data.draw(st.integers(0, VOCAB - 1)) for _ in parents])]
        self._compute(*work)

    @invariant()
    def slots_are_those_of_the_living(self):
        alive = {above for tree in self.trees for node in self._open(tree) for above in node.path()}
        assert self.cache.in_use == len(alive) == len({node.slot for node in alive})
        self.computed &= alive

    def teardown(self):
        for tree in self.trees:
            tree.release()
        assert self.cache.in_use == 0
        assert self.cache.free_slots() == self.cache.limit, "every region went back"


class WindowedProperties(TreeProperties):
    """The same with sliding windows in one layer and capped scores."""

    toy = Toy(toy_config(windows=(4, None), softcap=20.0))


TestTreeProperties = TreeProperties.TestCase
TestTreeProperties.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestWindowedProperties = WindowedProperties.TestCase
TestWindowedProperties.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def test_a_long_prompt_in_chunks_gives_the_logits_of_one_pass():
    toy = Toy()
    cache = toy.cache()
    tree = Tree(cache)
    tree.append([i % VOCAB for i in range(100)])
    path = tree.tip.path()
    for first in range(0, 100, 17):
        logits = toy.compute(cache, [(tree, path[first : first + 17])])
    assert_fresh(toy, {tree.tip: logits[tree.tip]})


def test_a_chain_is_read_as_one_span_without_a_mask():
    toy = Toy()
    cache = toy.cache()
    tree = Tree(cache, reserve=8)
    tree.append([1, 2, 3])
    toy.compute(cache, [(tree, tree.tip.path())])
    for token in range(40):  # past its reserve: the region grows in place
        tree.keep(tree.extend([tree.tip], [token % VOCAB])[0])
        plan = plan_pass([(tree, [tree.tip])], cache.positions)
        assert len(plan.kv_spans[None]) == 1
        assert plan.kv_spans[None][0].mask is None
        assert plan.kv_spans[None][0].length == 4 + token
        toy.compute(cache, [(tree, [tree.tip])])


def test_what_several_trees_share_is_one_span():
    toy = Toy()
    cache = toy.cache()
    root = Tree(cache)
    root.append([i % VOCAB for i in range(50)])
    toy.compute(cache, [(root, root.tip.path())])
    twins = [root.fork() for _ in range(4)]
    for token, twin in enumerate(twins):
        twin.append([token])
    work = [(twin, [twin.tip]) for twin in twins]
    spans = plan_pass(work, cache.positions).kv_spans[None]
    assert sorted((span.length, len(span.rows)) for span in spans) == [(1, 1)] * 4 + [(50, 4)]
    assert_fresh(toy, toy.compute(cache, work))


def test_trees_that_leave_a_span_at_different_points_share_its_beginning():
    toy = Toy()
    cache = toy.cache()
    root = Tree(cache)
    root.append([i % VOCAB for i in range(100)])
    path = root.tip.path()
    toy.compute(cache, [(root, path)])
    twins = [Tree(cache, after=path[at]) for at in (39, 39, 89)]
    for token, twin in enumerate(twins):
        twin.append([token])
    work = [(twin, [twin.tip]) for twin in twins]
    spans = plan_pass(work, cache.positions).kv_spans[None]
    assert sorted((span.length, len(span.rows)) for span in spans) == [(1, 1)] * 3 + [(40, 3), (50, 1)]
    assert_fresh(toy, toy.compute(cache, work))


def test_a_whole_tree_is_grown_at_once_by_the_places_of_parents():
    """The tip's children by -1; each node with its own origin and input embedding."""
    toy = Toy()
    cache = toy.cache()
    tree = Tree(cache)
    tree.append([1, 2])
    [before] = tree.extend([tree.tip], [9])
    embeds = list(torch.arange(10.0).view(5, 2))
    grown = tree.extend([-1, 0, -1, 1, before], [3, 4, 5, 6, 7], ["a", "b", "c", "d", "e"], embeds)
    assert list(map(tokens_of, grown)) == [[1, 2, 3], [1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 4, 6], [1, 2, 9, 7]]
    assert [node.origin for node in grown] == ["a", "b", "c", "d", "e"]
    assert all(node.input_embed is embed for node, embed in zip(grown, embeds, strict=True))
    assert list(tree.tentative) == [before, *grown]
    held = cache.in_use
    tree.free(before)
    assert cache.in_use == held - 2
    assert tree.extend([], []) == []


def test_a_full_cache_says_what_was_asked_for_and_leaves_the_tree_as_it_was():
    toy = Toy()
    cache = toy.cache(limit=80, capacity=16)
    tree = Tree(cache)
    tree.append([1] * 60)
    for _ in range(20):
        tree.extend([tree.tip], [1])
    with pytest.raises(FailureError, match=r"the cache is full: 80 of at most 80 tokens"):
        tree.extend([tree.tip], [1])
    held = cache.in_use
    for parents in ([tree.tip] * 30, range(-1, 29)):
        with pytest.raises(FailureError):
            tree.extend(parents, [1] * 30)
        assert cache.in_use == held
    tree.release()
    assert cache.in_use == 0


def test_the_cache_reports_what_it_holds():
    toy = Toy()
    cache = toy.cache()
    tree = Tree(cache)
    tree.append([1, 2, 3])
    assert cache.bytes() == 3 * 2 * 2 * 2 * 8 * 4  # tokens, keys and values, layers, heads, head_dim, float32
    tree.release()
    assert cache.bytes() == 0


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), data=st.data())
@settings(max_examples=50, deadline=None)
def test_regions_never_overlap_and_all_come_back(sizes, data):
    cache = Toy().cache(limit=200, capacity=8)
    live = []
    for size in sizes:
        region = cache.region(size)
        region.allocate(0)
        assert all(
            region.start + region.size <= other.start or other.start + other.size <= region.start for other in live
        )
        live.append(region)
        if data.draw(st.booleans()):
            gone = live.pop(data.draw(st.integers(0, len(live) - 1)))
            gone.free(gone.start)
    for region in live:
        region.free(region.start)
    assert cache.free_slots() == 200
    assert cache.in_use == 0


def test_what_lies_in_memory_never_reaches_a_row(monkeypatch):
    """Masked slots that were never computed hold nothing that could poison a product."""
    toy = Toy()
    monkeypatch.setattr(torch, "empty", lambda *shape, **kind: torch.full(*shape, torch.nan, **kind))
    cache = toy.cache(capacity=4)
    tree = Tree(cache)
    tree.append([1, 2, 3])
    toy.compute(cache, [(tree, tree.tip.path())])
    tree.extend([tree.tip] * 3, [4, 5, 6])  # take slots, and are never computed
    for _ in range(30):
        grown = tree.extend([tree.tip, tree.tip], [7, 8])
        assert_fresh(toy, toy.compute(cache, [(tree, grown)]))


def test_a_cache_that_cannot_be_allocated_says_how_much_was_asked_for():
    with pytest.raises(FailureError, match=r"no memory for a cache of 1000000000000 tokens \(256000\.0 GB\)"):
        Toy().cache(limit=10**12, capacity=10**12)
