"""What chosen rows read: the mean over heads of exact attention weights, on every path that a pass takes."""

from __future__ import annotations

import pytest
import torch

from outlay import Method, kernels
from outlay.decode.greedy import Greedy
from outlay.engine.engine import Engine
from outlay.kernels import AttentionPlan, AttentionSpan, KeyValues
from outlay.lm import LM
from outlay.models.config import DecoderConfig
from outlay.testing import tiny_model
from outlay.tree.attention import KernelAttention, TreeAttention
from outlay.tree.attention_rows import AttentionRows
from outlay.tree.cache import KV_DTYPES, Cache
from outlay.tree.plan import plan_pass
from outlay.tree.token_tree import Tree

HEADS, KV_HEADS, DIM = 4, 2, 16


def config_of(windows=(None,), softcap=None):
    return DecoderConfig(
        architecture="toy", vocab_size=9, hidden_size=8, num_layers=len(windows), num_heads=HEADS,
        num_kv_heads=KV_HEADS, head_dim=DIM, intermediate_size=8, max_positions=512, windows=windows,
        attention_scale=DIM**-0.5, attention_softcap=softcap,
    )  # fmt: skip


def draft_tree(cache):
    """Two trees that share a prefix, one with a tree of tentative nodes, in slots of which some were freed before."""
    first = Tree(cache, reserve=40)
    first.append([1] * 37)
    other = first.fork()
    first.free(first.extend([-1, 0, 1], [1, 2, 3])[0])
    first.append([2, 3])
    nodes = first.extend([-1, 0, 0, 1, 2, -1], range(6))
    other.append([4, 5, 6])
    return [(first, nodes), (other, other.tip.path()[-2:])]


def exactly(cache, layer, q, node, config):
    """The mean over heads of a node's weights in float64, [keys], those that a window hides 0."""
    path = node.path()
    keys, _ = cache.read(layer, torch.tensor([each.slot for each in path]), torch.float32)
    keys = keys.double().repeat_interleave(HEADS // KV_HEADS, 0)
    scores = (keys @ q.double()[:, :, None])[:, :, 0] * config.attention_scale
    if config.attention_softcap:
        scores = torch.tanh(scores / config.attention_softcap) * config.attention_softcap
    window = config.windows[layer]
    if window is not None:
        scores[:, : max(len(path) - window, 0)] = -torch.inf
    return scores.softmax(-1).mean(0)


@pytest.mark.parametrize("path", [KernelAttention, TreeAttention])
@pytest.mark.parametrize("dtype", KV_DTYPES.values(), ids=KV_DTYPES)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_weights_of_a_row_are_those_of_full_attention_over_its_path(path, dtype, softcap):
    if path is KernelAttention and not kernels.available():
        pytest.skip("the native kernels are not built")
    config = config_of((None, 8), softcap)
    cache = Cache(config, dtype, torch.device("cpu"), limit=256)
    generator = torch.Generator().manual_seed(2)
    for layer in range(2):
        cache.write(layer, slice(0, 256), *(torch.randn(256, KV_HEADS, DIM, generator=generator) for _ in range(2)))
    work = draft_tree(cache)
    nodes = [node for _, group in work for node in group]
    plan = plan_pass(work, cache.positions, config.windows)
    chosen = [0, 3, 5, 7]
    watched = AttentionRows(plan, chosen, config, torch.device("cpu"))
    options = {"dtype": torch.float32} if path is TreeAttention else {}
    attend, plain = (path(cache, plan, config, watched=each, **options) for each in (watched, None))
    queries = []
    for layer in range(2):
        q, k, v = (torch.randn(len(nodes), n, DIM, generator=generator) for n in (HEADS, KV_HEADS, KV_HEADS))
        assert torch.equal(attend(layer, q, k, v), plain(layer, q, k, v)), "what is attended stays as it is"
        queries.append(q)
    for row, means in zip(chosen, watched.means(), strict=True):
        for layer in range(2):
            expected = exactly(cache, layer, queries[layer][row], nodes[row], config)
            assert means[layer].shape == expected.shape == (nodes[row].position + 1,)
            assert (means[layer].double() - expected).abs().max() < 2e-6
            assert float(means[layer].sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("path", [KernelAttention, TreeAttention])
def test_beside_a_sink_they_sum_to_what_it_leaves(path):
    if path is KernelAttention and not kernels.available():
        pytest.skip("the native kernels are not built")
    config, sinks = config_of(), torch.tensor([0.5, -1.0, 2.0, 0.0])
    cache = Cache(config, torch.float32, torch.device("cpu"), limit=64)
    tree = Tree(cache)
    tree.append([1] * 20)
    plan = plan_pass([(tree, [tree.tip])], cache.positions)
    watched = AttentionRows(plan, [0], config, torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    cache.write(0, slice(0, 64), *(torch.randn(64, KV_HEADS, DIM, generator=generator) for _ in range(2)))
    q, k, v = (torch.randn(1, n, DIM, generator=generator) for n in (HEADS, KV_HEADS, KV_HEADS))
    path(cache, plan, config, sinks=[sinks], watched=watched)(0, q, k, v)
    keys, _ = cache.read(0, slice(0, 20), torch.float32)
    scores = (keys.repeat_interleave(2, 0) @ q[0, :, :, None])[:, :, 0] * config.attention_scale
    whole = torch.cat([scores, sinks[:, None]], 1).softmax(1)
    assert (watched.means()[0][0] - whole[:, :-1].mean(0)).abs().max() < 2e-6


def test_native_calls_refuse_what_can_not_receive_them():
    if not kernels.available():
        pytest.skip("the native kernels are not built")
    q, cache = torch.randn(2, HEADS, DIM), KeyValues(*(torch.randn(KV_HEADS, 40, DIM) for _ in range(2)))
    plan = AttentionPlan([AttentionSpan(0, 40)], 2)
    for receiver in (
        {0: torch.zeros(HEADS, 32)},  # too few keys
        {2: torch.zeros(HEADS, 48)},  # no such row
        {0: torch.zeros(HEADS, 47)},
        {0: torch.zeros(HEADS + 1, 48)},
        {0: torch.zeros(HEADS, 48, dtype=torch.float64)},
        {0: torch.zeros(HEADS, 96)[:, ::2]},
        {0: torch.zeros(HEADS, 48), 1: torch.zeros(HEADS, 64)},
    ):
        with pytest.raises(ValueError, match=r"expected|row"):
            kernels.attend(q, cache, plan, 1.0, weights=receiver)


class Watching(Method):
    """Greedy, which keeps what each of its tokens read."""

    about = Greedy.about

    def __init__(self, states=False):
        self.seen, self._states = [], states

    def decode(self, run):
        node = run.tip
        while True:
            asked = [run.target.forward_with_attention([node])]
            if self._states:
                asked.append(run.target.forward_with_states([node]))
            (logits, rows), *_ = yield asked
            self.seen.append(rows[0])
            node = run.commit(int(logits[0].argmax()))


@pytest.mark.parametrize("fast", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("states", [False, True])
def test_a_method_asks_for_them_beside_others_and_nobodys_text_changes(monkeypatch, fast, states):
    if not fast:
        monkeypatch.setattr("outlay.kernels.available", lambda: False)
    lm, watching = LM(tiny_model(), Engine()), Watching(states)
    prompt, options = [5, 6, 7] * 30, {"max_tokens": 6, "ignore_eos": True}
    with lm.engine.together():
        handles = [lm.submit(prompt, method=method, **options) for method in (watching, "greedy")]
    found, greedy = (handle.result() for handle in handles)
    assert found.tokens == greedy.tokens
    assert [rows.shape for rows in watching.seen] == [(2, 90 + step) for step in range(6)]
    for rows in watching.seen:
        assert torch.allclose(rows.sum(1), torch.ones(2), atol=1e-5)
        assert (rows >= 0).all()


def test_both_paths_tell_the_same(monkeypatch):
    prompt, found = [5, 9, 7, 8] * 20, []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr("outlay.kernels.available", lambda: False)
        watching = Watching()
        LM(tiny_model(), Engine()).generate(prompt, method=watching, max_tokens=3, ignore_eos=True)
        found.append(watching.seen)
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() < 1e-4
