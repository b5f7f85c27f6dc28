"""Keys and values in bfloat16 and int8: torch and the native kernels hold the same bits and read the same from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from outlay import kernels
from outlay.engine.passes import FusedPass, LayeredPass, pass_for
from outlay.testing import tiny_model
from outlay.tree.cache import KV_DTYPES, Cache, dequantize, quantize
from outlay.tree.plan import plan_pass
from outlay.tree.token_tree import Tree

CPU = torch.device("cpu")


def config_of(head_dim):
    return replace(tiny_model().decoder.config, head_dim=head_dim, num_kv_heads=3)


def some_heads(head_dim, seed=0):
    """Values of all sizes: rounding ties, zeros, groups of nothing and groups too small to divide by."""
    x = torch.randn(40, 3, head_dim, generator=torch.Generator().manual_seed(seed)) * 10.0 ** torch.randint(
        -5, 5, (40, 1, 1)
    )
    x[0], x[1], x[2, 0] = 0.0, 1e-35, torch.arange(head_dim) / 2
    x[3] = (x[3] * 256).round() / 256
    return x


@pytest.mark.skipif(not kernels.available(), reason="the native kernels are not built")
@pytest.mark.parametrize("head_dim", [8, 64, 80, 96])
@pytest.mark.parametrize("dtype", KV_DTYPES.values())
def test_torch_and_the_kernels_hold_the_same_bits(dtype, head_dim):
    k, v, slots = some_heads(head_dim), some_heads(head_dim, 1), torch.randperm(64)[:40]
    mine, theirs = (Cache(config_of(head_dim), dtype, CPU, limit=64) for _ in range(2))
    mine.write(1, slots, k, v)
    kernels.store(theirs.layers[1], slots, k, v)
    for name in ("keys", "values", "key_scales", "value_scales"):
        held, other = getattr(mine.layers[1], name), getattr(theirs.layers[1], name)
        assert held is other is None or torch.equal(held.view(torch.uint8), other.view(torch.uint8)), name


@pytest.mark.skipif(not kernels.available(), reason="the native kernels are not built")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_the_kernels_read_a_narrow_cache_as_the_floats_that_it_stands_for(dtype):
    cache = Cache(config_of(64), dtype, CPU, limit=64)
    cache.write(0, slice(0, 40), some_heads(64), some_heads(64, 1))
    wide = kernels.KeyValues(*(part.contiguous() for part in cache.read(0, slice(0, 64), torch.float32)))
    q = torch.randn(5, 6, 64)
    plan = kernels.AttentionPlan(
        [kernels.AttentionSpan(0, 11), kernels.AttentionSpan(30, 9, limits=torch.arange(3, 8))], 5
    )
    results = [kernels.attend(q, each, plan, 0.1, lse=True) for each in (cache.layers[0], wide)]
    assert all(torch.equal(narrow, exact) for narrow, exact in zip(*results, strict=True))


@pytest.mark.parametrize("head_dim", [8, 64, 80])
def test_int8_rounds_to_the_nearest_of_255_steps_in_each_group(head_dim):
    cache = Cache(config_of(head_dim), torch.int8, CPU, limit=64)
    x = some_heads(head_dim)
    q, scales = quantize(x, cache.group)
    assert q.abs().max() == 127
    error = (dequantize(q.to(torch.int8), scales) - x).abs().unflatten(-1, (-1, cache.group)).amax(-1)
    assert (error <= scales * 0.5001 + 1e-35).all()


@pytest.mark.parametrize(("dtype", "bytes_"), [("float32", 4 * 8), ("bfloat16", 2 * 8), ("int8", 8 + 4)])
def test_bytes_are_those_that_are_held_and_read(dtype, bytes_):
    from outlay import LM
    from outlay.engine.engine import Engine

    lm = LM(tiny_model(), Engine(kv_dtype=KV_DTYPES[dtype]))
    result = lm.generate("abcde", max_tokens=3, ignore_eos=True)
    per_token = 2 * 2 * 2 * bytes_  # keys and values, layers, heads
    cache = lm.engine.workers[0].cache
    assert cache.bytes_per_slot == per_token
    held = [part for layer in cache.layers for part in vars(layer).values() if part is not None]
    assert sum(part.nbytes for part in held) == cache.capacity * per_token
    assert result.ledger.kv_bytes == (5 + 6 + 7) * per_token


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 1e-2), ("int8", 3e-2)])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_a_narrow_cache_stays_near_and_grows_with_its_text(weights, dtype, bound):
    """Also past the cache's first capacity, which is copied when it grows."""
    decoder = tiny_model(dtype=weights).decoder
    logits = []
    for held in ("float32", dtype):
        cache = Cache(decoder.config, KV_DTYPES[held], CPU, limit=512, capacity=16)
        run = pass_for(decoder, cache)
        assert isinstance(run, FusedPass if kernels.available() else LayeredPass)
        tree = Tree(cache, reserve=10)
        for first in range(0, 60, 12):
            tree.append(range(first, first + 12))
            path = tree.tip.path()[first:]
            logits.append(run(plan_pass([(tree, path)], cache.positions), list(range(12))).logits)
            for node in path:
                node.computed = True
    exact, near = torch.cat(logits[:5]), torch.cat(logits[5:])
    assert 1e-5 < (near - exact).norm() / exact.norm() < bound
