import math
from itertools import pairwise

import pytest
import torch
from kernel_helpers import attend_exactly, visible_keys

from outlay import kernels
from outlay.kernels import AttentionPlan, AttentionSpan, KeyValues
from outlay.tree.cache import quantize

HEADS, KV_HEADS, CAPACITY = 6, 2, 300


def make_inputs(n, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(n, HEADS, dim, generator=generator)
    keys = torch.randn(KV_HEADS, CAPACITY, dim, generator=generator)
    values = torch.randn(KV_HEADS, CAPACITY, dim, generator=generator)
    return q, keys, values


def tree_spans(n, generator):
    """A shared prefix, a second one for some rows, scattered slots, a random tree mask, and limits."""
    some = list(range(0, n, 2))
    mask = torch.rand(n, 70, generator=generator) < 0.5
    return [
        AttentionSpan(0, 130),
        AttentionSpan(130, 9, rows=some),
        AttentionSpan(0, 5, rows=some[::-1], slots=torch.tensor([290, 250, 251, 299, 280])),
        AttentionSpan(150, 70, mask=mask),
        AttentionSpan(225, n, limits=torch.arange(1, n + 1)),
    ]


@pytest.mark.parametrize("dim", [64, 8, 80, 96, 128])
@pytest.mark.parametrize("n", [1, 3, 19])
def test_equals_float64(n, dim):
    q, keys, values = make_inputs(n, dim)
    spans = tree_spans(n, torch.Generator().manual_seed(1))
    out, lse = kernels.attend(q, KeyValues(keys, values), AttentionPlan(spans, n), dim**-0.5, lse=True)
    expected, sums = attend_exactly(q, keys, values, visible_keys(spans, n), dim**-0.5)
    assert (out - expected).abs().max() < 2e-6
    assert (lse - sums).abs().max() < 2e-6


def test_large_scores_do_not_overflow():
    q, keys, values = make_inputs(2, 64)
    spans = [AttentionSpan(0, 200)]
    out, lse = kernels.attend(q * 300, KeyValues(keys, values), AttentionPlan(spans, 2), 1.0, lse=True)
    expected, sums = attend_exactly(q * 300, keys, values, visible_keys(spans, 2), 1.0)
    assert (out - expected).abs().max() < 1e-2
    assert ((lse - sums).abs() / sums.abs()).max() < 1e-6


def test_same_bits_alone_in_company_and_on_two_threads():
    n = 21
    q, keys, values = make_inputs(n, 64)
    spans = tree_spans(n, torch.Generator().manual_seed(1))
    whole, lse = kernels.attend(q, KeyValues(keys, values), AttentionPlan(spans, n), 0.125, lse=True)
    for threads in (1, 2):
        kernels.set_threads(threads)
        again, sums = kernels.attend(q, KeyValues(keys, values), AttentionPlan(spans, n), 0.125, lse=True)
        assert torch.equal(again, whole)
        assert torch.equal(sums, lse)
        for row in range(n):
            alone = []
            for span in spans:
                rows = list(range(n)) if span.rows is None else span.rows
                if row in rows:
                    i = rows.index(row)
                    mask = None if span.mask is None else span.mask[i : i + 1]
                    limits = None if span.limits is None else span.limits[i : i + 1]
                    alone.append(AttentionSpan(span.start, span.length, mask=mask, limits=limits, slots=span.slots))
            out, _ = kernels.attend(q[row : row + 1], KeyValues(keys, values), AttentionPlan(alone, 1), 0.125)
            assert torch.equal(out[0], whole[row])


def held_as(dtype, keys, values):
    """Keys and values in one of the formats of a cache."""
    if dtype != torch.int8:
        return KeyValues(keys.to(dtype), values.to(dtype))
    (k, k_scales), (v, v_scales) = (quantize(each, 8) for each in (keys, values))
    return KeyValues(k.to(torch.int8), v.to(torch.int8), k_scales, v_scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("dim", [8, 24, 64, 80, 128])
@pytest.mark.parametrize("n", [7, 16, 70])
def test_same_bits_whether_keys_are_shared_by_many_rows_or_read_alone(n, dim, dtype):
    """What many rows share is scored over transposed keys, each tile widened once for up to 64 rows."""
    q, keys, values = make_inputs(n, dim)
    cache = held_as(dtype, keys, values)
    seen = torch.arange(1, n + 1)
    spans = [AttentionSpan(0, 201), AttentionSpan(201, n, limits=seen), AttentionSpan(280, 3, rows=[n - 1])]
    whole, lse = kernels.attend(q, cache, AttentionPlan(spans, n), 0.125, softcap=30.0, lse=True)
    for row in range(n):
        own = [AttentionSpan(0, 201), AttentionSpan(201, row + 1), *spans[2:][: row == n - 1]]
        own = [span._replace(rows=None) for span in own]
        out, sums = kernels.attend(q[row : row + 1], cache, AttentionPlan(own, 1), 0.125, softcap=30.0, lse=True)
        assert torch.equal(out[0], whole[row])
        assert torch.equal(sums[0], lse[row])


def test_same_bits_however_the_keys_are_cut():
    q, keys, values = make_inputs(4, 64)
    whole, lse = kernels.attend(q, KeyValues(keys, values), AttentionPlan([AttentionSpan(0, 217)], 4), 0.125, lse=True)
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        cuts = sorted(torch.randint(0, 218, (5,), generator=generator).tolist())
        bounds = [0, *cuts, 217]
        spans = [AttentionSpan(a, b - a) for a, b in pairwise(bounds)]
        out, sums = kernels.attend(q, KeyValues(keys, values), AttentionPlan(spans, 4), 0.125, lse=True)
        assert torch.equal(out, whole)
        assert torch.equal(sums, lse)


def test_same_bits_whether_keys_are_absent_or_masked():
    q, keys, values = make_inputs(3, 64)
    seen = torch.rand(200, generator=torch.Generator().manual_seed(4)) < 0.4
    slots = seen.nonzero()[:, 0]
    masked, _ = kernels.attend(
        q, KeyValues(keys, values), AttentionPlan([AttentionSpan(0, 200, mask=seen.expand(3, 200))], 3), 0.125
    )
    gathered, _ = kernels.attend(
        q, KeyValues(keys, values), AttentionPlan([AttentionSpan(0, len(slots), slots=slots)], 3), 0.125
    )
    assert torch.equal(masked, gathered)


def test_masked_slots_may_hold_anything():
    q, keys, values = make_inputs(2, 64)
    keys[:, 50], values[:, 50] = math.nan, math.nan
    mask = torch.ones(2, 100, dtype=torch.bool)
    mask[:, 50] = False
    out, _ = kernels.attend(q, KeyValues(keys, values), AttentionPlan([AttentionSpan(0, 100, mask=mask)], 2), 0.125)
    assert out.isfinite().all()


def test_row_without_keys():
    q, keys, values = make_inputs(2, 64)
    plan = AttentionPlan(
        [AttentionSpan(0, 10, rows=[1]), AttentionSpan(20, 4, mask=torch.tensor([[0] * 4, [1] * 4]).bool())], 2
    )
    out, lse = kernels.attend(q, KeyValues(keys, values), plan, 0.125, lse=True)
    assert (out[0] == 0).all()
    assert (lse[0] == -math.inf).all()
    assert lse[1].isfinite().all()


def test_parts_merge_by_their_log_sum_exp():
    q, keys, values = make_inputs(5, 64)
    cache = KeyValues(keys, values)
    whole, lse = kernels.attend(q, cache, AttentionPlan([AttentionSpan(0, 250)], 5), 0.125, lse=True)
    parts = [
        kernels.attend(q, cache, AttentionPlan([part], 5), 0.125, lse=True)
        for part in (AttentionSpan(0, 97), AttentionSpan(97, 153))
    ]
    sums = torch.stack([part[1] for part in parts])
    assert (torch.logsumexp(sums, 0) - lse).abs().max() < 2e-6
    weights = torch.softmax(sums, 0)[..., None]
    assert (weights[0] * parts[0][0] + weights[1] * parts[1][0] - whole).abs().max() < 2e-6
