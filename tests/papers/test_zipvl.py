"""ZipVL (He et al. 2024): the properties of its specification, and what every run under a cache policy owes."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import numpy as np
import pytest
import torch

from outlay import Budget
from outlay.attend.policy import CachePolicy, Everything, Hold, LayerChoice, Prompt, Step
from outlay.attend.quantizer import Block, PlainPart, QuantizedPart, pack, part_bytes, unpack
from outlay.attend.zipvl import (
    ZipVL,
    accumulated,
    important_count,
    largest,
    probe_attention,
    seen,
    top,
    visible_probes,
)
from outlay.engine.engine import Engine
from outlay.engine.prompt_attention import causal
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.models.config import DecoderConfig
from outlay.testing import MethodProperties, tiny_lm, tiny_model, tiny_vision_model
from outlay.tree.attention import attend_reference, merge
from outlay.tree.stored import HeldKeys

HEADS, KV_HEADS, DIM = 4, 2, 8
LONG = "A prompt that is longer than the others, so that a layer has something to leave out of it, again and again."
SAME = "zipvl:tau=1,bits=16x16,probes=500x0"


def config_of(windows=(None,), softcap=None):
    return DecoderConfig(
        architecture="toy", vocab_size=9, hidden_size=8, num_layers=len(windows), num_heads=HEADS,
        num_kv_heads=KV_HEADS, head_dim=DIM, intermediate_size=8, max_positions=512, windows=windows,
        attention_scale=DIM**-0.5, attention_softcap=softcap,
    )  # fmt: skip


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def held(tokens, base=0, seed=0):
    positions = base + torch.arange(tokens)
    return HeldKeys(positions, drawn(KV_HEADS, tokens, DIM, seed=seed) * 5, drawn(KV_HEADS, tokens, DIM, seed=seed + 1))


def dense_attention(q, k, window=None):
    """The mean over heads of causal attention of all rows, in a double loop in float64."""
    n = len(q)
    out = torch.zeros(n, n, dtype=torch.float64)
    keys = k.double().repeat_interleave(HEADS // KV_HEADS, 1)
    for row in range(n):
        first = 0 if window is None else max(0, row - window + 1)
        scores = torch.einsum("hd,nhd->hn", q[row].double(), keys[first : row + 1]) * DIM**-0.5
        out[row, first : row + 1] = scores.softmax(-1).mean(0)
    return out


# 1 and 7: where nothing is left out and nothing is rounded, nothing changes


@pytest.mark.parametrize("every", [0, 7])
@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_tau_1_with_all_probes_and_16_bits_writes_what_greedy_writes(every, kv_dtype):
    lm = LM(tiny_model(), Engine(kv_dtype=kv_dtype))
    options = {"max_tokens": 40, "ignore_eos": True}
    dense = lm.generate(LONG, **options)
    kept = lm.generate(LONG, **options, cache=f"{SAME},every={every}")
    assert kept.tokens == dense.tokens
    assert kept.facts["cache"]["mean_important"] == 1
    assert kept.ledger.extras.get("rewrites", 0) == (39 // every if every else 0)


def test_its_logits_are_those_of_dense_attention():
    lm = tiny_lm()
    options = {"max_tokens": 12, "ignore_eos": True, "logprobs": 257}
    dense, kept = lm.generate(LONG, **options), lm.generate(LONG, **options, cache=SAME)
    for one, other in zip(dense.logprobs, kept.logprobs, strict=True):
        mine, theirs = dict(one.top), dict(other.top)
        assert max(abs(mine[token] - theirs[token]) for token in mine) < 1e-5


def test_with_16_bits_the_text_is_that_of_the_sparse_prefill_alone():
    """What quantization does is isolated by a policy that lets the same rows attend and holds all as it is."""

    class SparseOnly(CachePolicy):
        about = ZipVL.about

        def keeper(self, prompt):
            inner = ZipVL(tau=0.8).keeper(prompt)

            class Whole(Everything):
                def prompt(self, layer, q, k, v):
                    return LayerChoice(inner.prompt(layer, q, k, v).rows, [Hold(torch.arange(len(q)))])

            return Whole()

    lm, options = tiny_lm(), {"max_tokens": 30, "ignore_eos": True}
    sparse = lm.generate(LONG, cache=SparseOnly(), **options)
    assert lm.generate(LONG, cache="zipvl:tau=0.8,bits=16x16", **options).tokens == sparse.tokens
    assert lm.generate(LONG, **options).tokens != sparse.tokens  # at this tau it matters


# 2 and 3: how many tokens are important


@pytest.mark.parametrize("seed", range(6))
def test_p_is_the_least_number_of_tokens_that_carry_tau_by_brute_force_over_subsets(seed):
    scores = drawn(9, seed=seed).abs().double()
    for tau in (0.05, 0.3, 0.5, 0.9, 0.975, 0.999):
        least = min(
            size
            for size in range(1, 10)
            for subset in itertools.combinations(range(9), size)
            if scores[list(subset)].sum() >= tau * scores.sum() - 1e-12
        )
        assert important_count(scores, tau) == least


def test_p_does_not_fall_as_tau_grows_and_stays_between_1_and_n():
    scores = drawn(200).abs().double() ** 3
    counts = [important_count(scores, tau / 100) for tau in range(1, 101)]
    assert counts == sorted(counts)
    assert counts[0] >= 1
    assert counts[-1] == 200
    assert important_count(torch.tensor([0.0, 1.0, 0.0]).double(), 1.0) == 1  # tau 1 counts each token that is read


@pytest.mark.parametrize("tau", [0.1, 0.34, 0.5, 0.9, 0.99])
def test_uniform_attention_takes_a_share_tau_and_attention_to_one_token_takes_one(tau):
    uniform = accumulated(torch.full((50, 50), 1 / 50, dtype=torch.float64))
    assert important_count(uniform, tau) == math.ceil(tau * 50 - 1e-9)
    one = torch.zeros(50, 50, dtype=torch.float64)
    one[:, 7] = 1
    assert important_count(accumulated(one), tau) == 1


# 4: raw scores count, normalized scores choose


@pytest.mark.parametrize("window", [None, 5])
def test_normalized_scores_equal_a_double_loop(window):
    q, k = drawn(20, HEADS, DIM), drawn(20, KV_HEADS, DIM, seed=1)
    rows = torch.tensor([3, 8, 9, 17, 18, 19])
    attention = probe_attention(q[rows], k, rows, config_of(), window)
    dense = dense_attention(q, k, window)
    torch.testing.assert_close(attention.double(), dense[rows], atol=1e-6, rtol=0)  # a subset of the full map's rows
    got = accumulated(attention) / visible_probes(rows, 20, window)
    for column in range(20):
        visible = [row for row in rows.tolist() if column <= row and (window is None or column > row - window)]
        mean = sum(dense[row, column] for row in visible) / len(visible) if visible else 0
        assert float(got[column]) == pytest.approx(float(mean), abs=1e-6)


def test_a_map_in_which_each_row_reads_itself_has_raw_scores_1_and_normalized_ones_1_over_what_sees_it():
    n = 12
    raw = accumulated(torch.eye(n))
    assert raw.tolist() == [1.0] * n
    assert (raw / visible_probes(torch.arange(n), n)).tolist() == [1 / (n - j) for j in range(n)]


def test_the_choice_goes_by_normalized_scores_so_late_tokens_are_not_at_a_disadvantage():
    """All rows spread their attention evenly: raw scores fall with the position, normalized ones rise to 1 at row 0."""
    n = 30
    attention = torch.tril(torch.ones(n, n)) / torch.arange(1, n + 1)[:, None]
    raw = accumulated(attention)
    assert top(raw, 5).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]
    recent = torch.arange(n - 4, n)
    few = accumulated(attention[recent]) / visible_probes(recent, n)
    assert float(few[0] - few[n - 5]) == pytest.approx(0, abs=1e-6)  # the same for all that every probe sees


def test_probes_are_the_last_rows_and_drawn_earlier_ones():
    rows = ZipVL().probe_rows(2000)
    assert len(rows) == 128
    assert rows[-64:].tolist() == list(range(1936, 2000))
    assert len({*rows.tolist()}) == 128
    assert rows.tolist() == sorted(rows.tolist())
    assert torch.equal(rows, ZipVL().probe_rows(2000))
    assert not torch.equal(rows, ZipVL(seed=1).probe_rows(2000))
    assert ZipVL().probe_rows(13).tolist() == list(range(13))  # fewer tokens than probes: all of them
    assert len(ZipVL().probe_rows(400)) == 40
    assert len(ZipVL(probes=(3, 2)).probe_rows(400)) == 5


# 5: the quantizer


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 64, 127])
def test_packing_is_exact_to_the_bit_and_takes_no_more_bytes_than_it_must(bits, count):
    codes = torch.randint(0, 1 << bits, (count,), generator=torch.Generator().manual_seed(count)).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-count * bits // 8)
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_number_is_off_by_half_a_step_at_most(bits):
    for dims in ((1,), (0, 2)):
        x = drawn(KV_HEADS, 37, DIM) * torch.logspace(-2, 2, DIM)
        block = Block.of(x, bits, dims)
        step = (block.high.float() - block.low.float()) / ((1 << bits) - 1)
        assert bool(((block.read() - x).abs() <= step / 2 * (1 + 1e-5) + 1e-7).all())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_numbers_that_are_all_the_same_are_exact(bits):
    x = torch.full((KV_HEADS, 5, DIM), 0.75)
    assert torch.equal(Block.of(x, bits, (1,)).read(), x)
    assert torch.equal(Block.of(torch.zeros_like(x), bits, (0, 2)).read(), torch.zeros_like(x))


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("tokens", [1, 6, 41])
def test_bytes_held_equal_the_closed_form_and_the_sizes_of_tensors(bits, tokens, separable):
    part = QuantizedPart(held(tokens, base=10), bits, 10, 50, separable=separable)
    assert part.payload + part.overhead == part_bytes(tokens, 50, bits, KV_HEADS, DIM, separable=separable)
    assert part.payload == 2 * -(-tokens * KV_HEADS * DIM * bits // 8)
    blocks = [part._keys, part._values]
    tensors = [x for block in blocks for x in (block.codes, block.low, block.high)]
    tensors += [part._channels] if separable else []
    assert part.payload + part.overhead == sum(x.nbytes for x in tensors) + part._positions._bits.nbytes


def test_channel_separable_values_bear_a_channel_of_outliers():
    tokens = held(64)
    values = tokens.values.clone()
    values[:, :, 3] *= 60
    outlier = tokens._replace(values=values)
    errors = []
    for separable in (True, False):
        read = QuantizedPart(outlier, 4, 0, 64, separable=separable).read(torch.float32)
        others = [channel for channel in range(DIM) if channel != 3]
        errors.append(float((read.values - values)[:, :, others].norm()))
    assert errors[0] < errors[1] / 2


# 6: the invariants of what is held


def prompt_of(n, config=None, **options):
    options = {"dtype": torch.float32} | options
    return Prompt([0] * n, torch.ones(n, dtype=torch.bool), config or config_of(), **options)


@pytest.mark.parametrize("policy", [ZipVL(tau=0.7), ZipVL(tau=0.7, full_first=3), ZipVL(ratio=0.3)])
def test_important_and_other_tokens_partition_the_prompt(policy):
    n = 60
    q, k, v = drawn(n, HEADS, DIM), drawn(n, KV_HEADS, DIM, seed=1), drawn(n, KV_HEADS, DIM, seed=2)
    choice = policy.keeper(prompt_of(n)).prompt(0, q, k, v)
    positions = torch.cat([hold.positions for hold in choice.holds])
    assert sorted(positions.tolist()) == list(range(n))
    important = torch.cat([hold.positions for hold in choice.holds[:2]])
    assert torch.equal(important.sort().values, choice.rows)
    assert {0, n - 1} <= {*choice.rows.tolist()}
    if policy.ratio is not None:
        assert math.ceil(0.3 * n) <= len(choice.rows) <= math.ceil(0.3 * n) + 2


def test_eviction_drops_the_others_and_text_beside_images_can_be_kept():
    n = 60
    q, k, v = drawn(n, HEADS, DIM), drawn(n, KV_HEADS, DIM, seed=1), drawn(n, KV_HEADS, DIM, seed=2)
    evicted = ZipVL(tau=0.6, mode="evict").keeper(prompt_of(n)).prompt(0, q, k, v)
    held_positions = torch.cat([hold.positions for hold in evicted.holds])
    assert torch.equal(held_positions.sort().values, evicted.rows)
    assert len(evicted.rows) < n
    is_text = torch.arange(n) % 3 == 0
    mixed = prompt_of(n)._replace(is_text=is_text)
    rows = ZipVL(tau=0.6, keep_text=True).keeper(mixed).prompt(0, q, k, v).rows
    assert {*is_text.nonzero()[:, 0].tolist()} <= {*rows.tolist()}


def test_what_is_held_is_read_at_its_own_positions():
    tokens = HeldKeys(torch.tensor([12, 13, 17, 40]), *held(4)[1:])
    part = QuantizedPart(tokens, 8, 10, 50)
    read = part.read(torch.float32)
    assert torch.equal(read.positions, tokens.positions)
    torch.testing.assert_close(read.keys, tokens.keys, atol=0.05, rtol=0)
    plain = PlainPart(tokens, torch.float32, 0, 10, 50).read(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(plain, tokens, strict=True))


def test_pieces_that_are_read_apart_merge_to_attention_over_all_in_float64():
    q, keys, values = (drawn(2, 5, DIM).double(), *(drawn(2, 30, DIM, seed=s).double() for s in (1, 2)))
    whole, _ = attend_reference(q, keys, values, None, 0.3)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    cuts = (order[:7], order[7:8], order[8:])
    out, lse = torch.zeros(2, 5, DIM).double(), torch.full((2, 5), -torch.inf).double()
    for cut in cuts:
        scores = torch.einsum("hqd,hkd->hqk", q, keys[:, cut]) * 0.3
        piece = torch.einsum("hqk,hkd->hqd", scores.softmax(-1), values[:, cut])
        out, lse = merge(out, lse, piece, scores.logsumexp(-1))
    torch.testing.assert_close(out, whole, atol=1e-6, rtol=0)  # the reference keeps its scores in float32


@pytest.mark.parametrize("window", [None, 6])
def test_important_tokens_attend_to_each_other_in_their_own_order(window):
    n = 40
    q, k, v = drawn(n, HEADS, DIM), drawn(n, KV_HEADS, DIM, seed=1), drawn(n, KV_HEADS, DIM, seed=2)
    rows = torch.tensor([0, 3, 4, 11, 25, 26, 39])
    out, _ = causal(q[rows], k[rows].transpose(0, 1), v[rows].transpose(0, 1), rows, window, config_of())
    for place, row in enumerate(rows.tolist()):
        visible = [x for x in rows.tolist() if x <= row and (window is None or x > row - window)]
        keys, values = (x[visible].repeat_interleave(HEADS // KV_HEADS, 1).double() for x in (k, v))
        weights = (torch.einsum("hd,nhd->hn", q[row].double(), keys) * DIM**-0.5).softmax(-1)
        torch.testing.assert_close(out[place].double(), torch.einsum("hn,nhd->hd", weights, values), atol=1e-5, rtol=0)


# 8: recompression


def test_older_blocks_are_never_quantized_again():
    """What a step reads of earlier tokens stays the same, bit by bit, when later ones are held anew."""
    reads = []

    class Watching(ZipVL):
        def keeper(self, prompt):
            inner = super().keeper(prompt)
            step = inner.step

            def watched(at: Step):
                reads.append((at.position, at.tail, at.read(1)))
                return step(at)

            inner.step = watched
            return inner

    lm = tiny_lm()
    result = lm.generate(LONG, max_tokens=50, ignore_eos=True, cache=Watching(every=10))
    assert result.ledger.extras["rewrites"] == 4
    for (position, tail, before), (_, _, after) in itertools.pairwise(reads):
        old = before.positions <= position - tail  # in a segment before that step
        count = int(old.sum())
        assert torch.equal(before.keys[:, :count], after.keys[:, :count])
        assert torch.equal(before.values[:, :count], after.values[:, :count])
    positions = reads[-1][2].positions
    assert positions.tolist() == list(range(len(positions)))  # nothing is lost, nothing is there twice


# 9, and what the ledger says


@pytest.mark.parametrize("mode", ["quantize", "evict"])
def test_the_ledger_equals_the_closed_forms(mode):
    policy = ZipVL(tau=0.8, mode=mode, full_first=2)
    model = tiny_model()
    result = tiny_lm().generate(LONG, max_tokens=1, ignore_eos=True, cache=policy, chat=False)
    n, config, extras = result.prompt_tokens, model.decoder.config, result.ledger.extras
    counts = [round(share * n) for share in result.facts["cache"]["important"]]
    wide = config.num_heads * config.head_dim
    assert extras["attention_flops"] == sum(4 * wide * p * (p + 1) // 2 for p in counts)
    assert extras["attention_flops_dense"] == config.num_layers * 4 * wide * n * (n + 1) // 2
    assert extras["probe_flops"] == config.num_layers * 2 * wide * len(policy.probe_rows(n)) * n
    prompt = prompt_of(n, config)
    held_bytes = extras["kv_payload"] + extras["kv_overhead"]
    assert held_bytes == sum(policy.layer_bytes(prompt, 2, p) for p in counts)
    assert result.ledger.kv_held == held_bytes
    assert extras["kv_dense"] == config.num_layers * 2 * 16 * 2 * n
    width = config.num_kv_heads * config.head_dim
    low = policy.bits[1] if mode == "quantize" else 0
    payload = sum(2 * width * (2 * 32 + (p - 2) * 4 + (n - p) * low) // 8 for p in counts)  # the first in float32
    assert extras["kv_payload"] == payload


def test_a_budget_of_bytes_held_finds_the_largest_tau_that_fits():
    lm, options = tiny_lm(), {"max_tokens": 8, "ignore_eos": True, "chat": False}
    whole = lm.generate(LONG, **options, cache="zipvl").ledger
    prompt_bytes = whole.extras["kv_payload"] + whole.extras["kv_overhead"]
    found = []
    for share in (0.85, 0.9, 0.95):
        cap = whole.kv_held - int((1 - share) * prompt_bytes)
        result = lm.generate(LONG, **options, cache="zipvl", budget=Budget(kv_held=cap))
        assert result.finish_reason == "length"
        assert result.ledger.kv_held <= cap
        found.append(result.facts["cache"]["tau"])
    assert found == sorted(found)
    assert 0 < found[0] < found[2] < 0.975
    assert lm.generate(LONG, **options, cache="zipvl", budget=Budget(kv_held=10**7)).facts["cache"]["tau"] == 0.975


def test_bisection_finds_the_border():
    assert largest(lambda tau: tau <= 0.4375, 0.975) == pytest.approx(0.4375, abs=1e-9)
    assert largest(lambda tau: True, 0.9) == 0.9
    assert largest(lambda tau: False, 0.9) < 1e-9


def test_seen_is_causal_and_within_the_window():
    assert seen(torch.tensor([1, 3]), 4, None).tolist() == [[True, True, False, False], [True] * 4]
    assert seen(torch.tensor([3]), 4, 2).tolist() == [[False, False, True, True]]


# images


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def test_prompts_with_images_are_held_too_and_their_text_can_be_kept():
    options = {"images": [picture(0), picture(1)], "max_tokens": 20, "ignore_eos": True}
    lm = LM(tiny_vision_model(), Engine())
    dense = lm.generate(LONG, **options)
    assert lm.generate(LONG, **options, cache=SAME).tokens == dense.tokens
    kept = lm.generate(LONG, **options, cache="zipvl:tau=0.3,keep_text=true")
    share = kept.prompt_tokens - 2 * 4  # of which a tile of the tiny model has four
    assert min(kept.facts["cache"]["important"]) >= share / kept.prompt_tokens
    assert max(lm.generate(LONG, **options, cache="zipvl:tau=0.3").facts["cache"]["important"]) < 0.8
    other = lm.generate(LONG, **options | {"images": [picture(2), picture(1)]}, cache=SAME)
    assert (
        other.tokens
        == LM(tiny_vision_model(), Engine()).generate(LONG, **options | {"images": [picture(2), picture(1)]}).tokens
    )


# bad input


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("zipvl:tau=0", "tau above 0 and at most 1"),
        ("zipvl:tau=1.1", "tau above 0 and at most 1"),
        ("zipvl:bits=3x2", "two of 2, 4, 8, 16 bits"),
        ("zipvl:bits=2x4", "the larger first"),
        ("zipvl:bits=4", "two of 2, 4, 8, 16 bits"),
        ("zipvl:mode=forget", "'quantize' or 'evict'"),
        ("zipvl:probes=64", "64x64"),
        ("zipvl:ratio=0", "ratio above 0"),
        ("zipvl:every=-1", "0 or more"),
        ("zipvl:heads=3", "no option 'heads'"),
        ("zipvll", "did you mean"),
    ],
)
def test_bad_options_are_refused_in_a_line(written, says):
    with pytest.raises(UsageError, match=says):
        tiny_lm().generate("a", cache=written)


def test_options_of_an_object_are_refused_as_well():
    with pytest.raises(UsageError, match="quantize or evict"):
        ZipVL(mode="forget")


def test_a_budget_below_a_token_a_layer_is_refused_with_the_least():
    with pytest.raises(UsageError, match=r"below what one token a layer needs: \d+ for this prompt"):
        tiny_lm().generate(LONG, cache="zipvl", budget=Budget(kv_held=100))


# a policy by its name as a method, and the laws of methods under it


def test_as_a_method_it_is_greedy_or_sample_under_the_policy():
    lm, options = tiny_lm(), {"max_tokens": 20, "ignore_eos": True}
    beside = lm.generate(LONG, cache="zipvl:tau=0.9", **options)
    alone = lm.generate(LONG, method="zipvl:tau=0.9", **options)
    assert (alone.tokens, alone.method) == (beside.tokens, "zipvl:tau=0.9")
    drawn_beside = lm.generate(LONG, cache="zipvl:tau=0.9", temperature=0.9, seed=3, **options)
    assert lm.generate(LONG, method="zipvl:tau=0.9", temperature=0.9, seed=3, **options).tokens == drawn_beside.tokens
    with pytest.raises(UsageError, match="is a cache policy itself"):
        lm.generate(LONG, method="zipvl", cache="zipvl")


class TestGreedyUnderZipVL(MethodProperties):
    method = "greedy"
    options: ClassVar = {"cache": "zipvl:tau=0.9,every=8"}


class TestSampleUnderZipVL(MethodProperties):
    method = "sample"
    options: ClassVar = {"cache": "zipvl:tau=0.9,mode=evict,every=5", "temperature": 0.9}


class TestBestOfUnderZipVL(MethodProperties):
    method = "best_of"
    options: ClassVar = {"cache": "zipvl:tau=0.9,every=8", "temperature": 0.9}


class TestSpeculativeUnderZipVL(MethodProperties):
    method = "rsd"
    draft = tiny_model(1)
    options: ClassVar = {"cache": "zipvl:tau=0.9,every=8"}


class TestZipVLAsAMethod(MethodProperties):
    method = "zipvl:tau=0.9,ratio=0.5,full_first=2"


@pytest.mark.slow
class TestBeamUnderZipVL(MethodProperties):
    method = "beam"
    options: ClassVar = {"cache": "zipvl:tau=0.9,every=8"}


@pytest.mark.slow
class TestLookupUnderZipVL(MethodProperties):
    method = "lookup"
    options: ClassVar = {"cache": "zipvl:tau=0.9,every=8", "temperature": 0.9}


@pytest.mark.slow
class TestAdedUnderZipVL(MethodProperties):
    method = "aded"
    options: ClassVar = {"cache": "zipvl:tau=0.9,every=8"}


@pytest.mark.slow
class TestSpectrUnderZipVL(MethodProperties):
    method = "spectr"
    draft = tiny_model(1)
    options: ClassVar = {"cache": "zipvl:tau=0.9,every=8", "temperature": 0.9}


@pytest.mark.slow
class TestTraversalUnderZipVL(MethodProperties):
    method = "traversal"
    draft = tiny_model(1)
    options: ClassVar = {"cache": "zipvl:tau=0.9,every=8", "temperature": 0.9}
