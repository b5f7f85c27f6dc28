"""In the native pass a row's bits depend on its path alone: not on slots, holes, chunks, company or windows."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from tree.test_token_tree import TreeProperties

from outlay import kernels
from outlay.engine.passes import FusedPass, pass_for
from outlay.models.linear import pack, stack
from outlay.models.mlp import Mlp
from outlay.testing import tiny_model
from outlay.tree.cache import Cache
from outlay.tree.plan import plan_pass
from outlay.tree.token_tree import Tree


def in_parts(layer):
    """A layer whose products have parts in formats of their own, as mixed files have."""
    qkv, gate_up = (linear.packed.dequantize() for linear in (layer.qkv, layer.mlp.gate_up))
    keys, values = pack(qkv[:48], "int4"), pack(qkv[48:], "int8")
    gate, up = pack(gate_up[:64], "bfloat16"), pack(gate_up[64:], "int4")
    mlp = Mlp(stack([gate, up]), layer.mlp.down, layer.mlp.activation_name, gated=True)
    return replace(layer, qkv=stack([keys, values]), mlp=mlp)


class Native:
    """A tiny decoder in int4 on the native kernels, with what a row gets alone, one token at a time, to compare."""

    def __init__(self, windows=(None, None), mixed=False):
        self.decoder = tiny_model(dtype="int4", context=1024).decoder
        if mixed:
            self.decoder.layers = tuple(map(in_parts, self.decoder.layers))
        self.decoder.config = replace(self.decoder.config, windows=windows)
        self._passes = WeakKeyDictionary()
        self._stepped = self.cache(capacity=4096)
        self.forget()

    def forget(self):
        self._slots, self._logits = {(): []}, {}

    def cache(self, **options):
        return Cache(self.decoder.config, torch.float32, torch.device("cpu"), **({"limit": 4096} | options))

    def compute(self, cache, work):
        plan = plan_pass(work, cache.positions, self.decoder.config.windows)
        logits = self._pass(cache)(plan, list(range(len(plan.keys_seen)))).logits
        nodes = [node for _, group in work for node in group]
        for node in nodes:
            node.computed = True
        return dict(zip(nodes, logits, strict=True))

    def fresh(self, tokens):
        """Steps through `tokens` in slots that are never freed, reading each path's keys one after the other."""
        for end in range(1, len(tokens) + 1):
            path = tuple(tokens[:end])
            if path not in self._logits:
                self._slots[path] = slots = [*self._slots[path[:-1]], len(self._logits)]
                plans = [
                    kernels.AttentionPlan([kernels.AttentionSpan(0, len(seen), slots=torch.tensor(seen))], 1)
                    for seen in (slots[-window:] if window else slots for window in self._kinds())
                ]
                hidden = self.decoder.embed(torch.tensor(path[-1:]))
                fused = self._pass(self._stepped)._fused
                at, slot = torch.tensor([end - 1]), torch.tensor(slots[-1:])
                self._logits[path] = fused.run(hidden, at, slot, plans)[0][0]
        return self._logits[tuple(tokens)]

    def _kinds(self):
        return dict.fromkeys(self.decoder.config.windows)

    def _pass(self, cache):
        if cache not in self._passes:
            self._passes[cache] = pass_for(self.decoder, cache)
            assert isinstance(self._passes[cache], FusedPass)
        return self._passes[cache]


class SameBits(TreeProperties):
    """Whatever is grown, kept, pruned, refilled and forked, in one pass or many: the bits are those of stepping."""

    toy = Native()

    def __init__(self):
        self.toy.forget()
        super().__init__()

    def check(self, logits):
        for node, row in logits.items():
            assert torch.equal(row, self.toy.fresh([above.token for above in node.path()]))

    @rule(data=st.data(), count=st.integers(1, 40), chunk=st.integers(1, 40))
    def append_in_chunks_while_another_tree_grows(self, data, count, chunk):
        tree, other = self._tree(data), self._tree(data)
        tree.prune(())
        before = tree.tip
        tree.append(data.draw(st.lists(st.integers(0, 255), min_size=count, max_size=count)))
        path = tree.tip.path(before)
        for first in range(0, count, chunk):
            grown = [] if other is tree else other.extend([other.tip, other.tip], [1, 2])
            if grown:
                grown += other.extend([grown[1], grown[0]], [3, 4])
            self._compute(tree, path[first : first + chunk], *([other, grown] if grown else []))


class SameBitsInWindows(SameBits):
    """The same where one layer has a sliding window."""

    toy = Native(windows=(5, None))


class SameBitsInParts(SameBits):
    """The same where a layer's products have parts in several formats."""

    toy = Native(mixed=True) if kernels.available() else None


if kernels.available():
    TestSameBitsInParts = SameBitsInParts.TestCase
    TestSameBitsInParts.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
    TestSameBits = SameBits.TestCase
    TestSameBits.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
    TestSameBitsInWindows = SameBitsInWindows.TestCase
    TestSameBitsInWindows.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.skipif(not kernels.available(), reason="the native kernels are not built")
@pytest.mark.parametrize("windows", [(None, None), (24, None)])
def test_drafting_rejecting_and_refilling_gives_the_bits_of_stepping(windows):
    """200 rounds of a drafted tree of which a path is kept: the trunk ends up scattered over its region."""
    toy = Native(windows)
    cache = toy.cache()
    tree, company = Tree(cache), Tree(cache)
    for start in (tree, company):
        start.append([5, 6, 7] * 15)
    toy.compute(cache, [(tree, tree.tip.path()), (company, company.tip.path())])
    random = torch.Generator().manual_seed(0)
    for number in range(200):
        grown = [tree.tip]
        for token in torch.randint(0, 256, (6,), generator=random).tolist():
            grown += tree.extend([grown[int(torch.randint(0, len(grown), (), generator=random))]], [token])
        work = [(tree, grown[1:])]
        if number % 3 == 0:
            company.append([number % 256])
            work.append((company, [company.tip]))
        for node, row in toy.compute(cache, work).items():
            assert torch.equal(row, toy.fresh([above.token for above in node.path()]))
        tree.keep(grown[int(torch.randint(1, 7, (), generator=random))])
    slots = [node.slot for node in tree.tip.path()]
    assert slots != sorted(slots), "holes were refilled out of order"
