"""The fused decoder against the same network written in torch, and against itself at other widths."""

from array import array
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise

import pytest
import torch
import torch.nn.functional as F
from kernel_helpers import make_layer, rows_of

from outlay import kernels
from outlay.kernels import (
    AttentionPlan,
    AttentionSpan,
    FusedDecoder,
    FusedLayer,
    FusedLinear,
    FusedNorm,
    FusedWeights,
    KeyValues,
    PassInputs,
    Table,
)

HIDDEN, HEADS, KV_HEADS, DIM, WIDE, VOCAB, LAYERS, CAPACITY = 96, 6, 2, 32, 160, 203, 3, 96
EPS, SCALE = 1e-5, DIM**-0.5


@dataclass(frozen=True)
class Kind:
    """What a decoder is made of beside its linear layers."""

    biases: bool = False
    head_norms: bool = False
    layer_norm: bool = False
    post_norms: bool = False
    rope_dim: int = DIM  # 0: positions are not rotated
    softcaps: bool = False
    activation: str = "silu"
    gated: bool = True
    wide_head_norms: bool = False
    pre_norms: bool = True
    rope_bases: tuple[float | None, ...] = (10000.0,) * LAYERS  # None: the layer is not rotated
    residual_scale: float = 1.0
    logit_scale: float = 1.0


LLAMA = Kind()
KINDS = {
    "llama": LLAMA,
    "qwen": Kind(biases=True, head_norms=True, rope_dim=DIM // 2),
    "gemma2": Kind(post_norms=True, softcaps=True, activation="gelu_tanh"),
    "gemma3": Kind(head_norms=True, post_norms=True, rope_bases=(10000.0, 1e6, 10000.0)),
    "smollm3": Kind(rope_bases=(10000.0, None, 10000.0)),
    "olmo2": Kind(head_norms=True, wide_head_norms=True, pre_norms=False, post_norms=True),
    "granite": Kind(residual_scale=0.22, logit_scale=0.25, softcaps=True),
    "gpt2": Kind(biases=True, layer_norm=True, rope_dim=0, activation="gelu", gated=False),
    "opt": Kind(biases=True, layer_norm=True, rope_dim=0, activation="relu", gated=False),
}


def make_weights(form, kind=LLAMA):
    seeds = count()

    def vector(size):
        return 1 + 0.1 * rows_of(1, size, next(seeds))[0]

    def linear(m, k):
        return FusedLinear(make_layer(form, m, k, next(seeds)), vector(m) - 1 if kind.biases else None)

    def make_norm():
        return FusedNorm(vector(HIDDEN), vector(HIDDEN) - 1 if kind.layer_norm else None)

    def angles(base):
        return torch.arange(CAPACITY)[:, None] * base ** (-torch.arange(0, kind.rope_dim, 2) / kind.rope_dim)

    bases = kind.rope_bases if kind.rope_dim else (None,) * LAYERS
    q_norm, k_norm = (DIM * heads if kind.wide_head_norms else DIM for heads in (HEADS, KV_HEADS))
    layers = [
        FusedLayer(
            attn_norm=make_norm() if kind.pre_norms else None,
            qkv=linear((HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
            out=linear(HIDDEN, HEADS * DIM),
            mlp_norm=make_norm() if kind.pre_norms else None,
            gate_up=linear(2 * WIDE if kind.gated else WIDE, HIDDEN),
            down=linear(HIDDEN, WIDE),
            q_norm=vector(q_norm) if kind.head_norms else None,
            k_norm=vector(k_norm) if kind.head_norms else None,
            post_attn_norm=make_norm() if kind.post_norms else None,
            post_mlp_norm=make_norm() if kind.post_norms else None,
            cos=None if base is None else angles(base).cos(),
            sin=None if base is None else angles(base).sin(),
        )
        for base in bases
    ]
    return FusedWeights(
        layers,
        make_norm(),
        make_layer("q8" if form in ("q4", "mixed") else form, VOCAB, HIDDEN, 99),
        HEADS,
        KV_HEADS,
        DIM,
        EPS,
        SCALE,
        attention_softcap=2.0 if kind.softcaps else None,
        logit_softcap=1.5 if kind.softcaps else None,
        activation=kind.activation,
        gated=kind.gated,
        residual_scale=kind.residual_scale,
        logit_scale=kind.logit_scale,
    )


def make_cache(dtype=torch.float32):
    if dtype != torch.int8:
        return KeyValues(*(torch.full((KV_HEADS, CAPACITY, DIM), torch.nan, dtype=dtype) for _ in range(2)))
    parts = [torch.full((KV_HEADS, CAPACITY, DIM), 77, dtype=dtype) for _ in range(2)]
    return KeyValues(*parts, *(torch.full((KV_HEADS, CAPACITY, DIM // 16), torch.nan) for _ in range(2)))


def make_decoder(weights, dtype=torch.float32, hidden_states=None):
    return FusedDecoder(weights, [make_cache(dtype) for _ in range(LAYERS)], hidden_states=hidden_states)


def norm(x, part):
    if part is None:
        return x
    if part.bias is not None:
        return F.layer_norm(x, (HIDDEN,), part.weight.double(), part.bias.double(), EPS)
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * part.weight.double()


def apply(linear, x):
    y = x @ linear.packed.dequantize().double().T
    return y if linear.bias is None else y + linear.bias


def cap(x, limit):
    return x if limit is None else limit * torch.tanh(x / limit)


def rotate(x, cos, sin):
    """x [n, heads, dim], cos and sin [n, rope_dim / 2]."""
    half = cos.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None].double(), sin[:, None].double()
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def attend(weights, q, k, v):
    group = HEADS // KV_HEADS
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) * SCALE
    scores = cap(scores, weights.attention_softcap)
    later = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    return torch.einsum(
        "hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v.repeat_interleave(group, 1)
    )


def reference(weights, hidden):
    """Logits of all rows of one causal sequence from position 0, in float64."""
    act = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "gelu_tanh": partial(F.gelu, approximate="tanh")}
    n, x = len(hidden), hidden.double()
    for layer in weights.layers:
        qkv = apply(layer.qkv, norm(x, layer.attn_norm))
        q, k, v = qkv.split([HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM], dim=1)
        if layer.q_norm is not None:
            wide = len(layer.q_norm) > DIM
            q, k = (x if wide else x.view(n, -1, DIM) for x in (q, k))
            q, k = norm(q, FusedNorm(layer.q_norm)), norm(k, FusedNorm(layer.k_norm))
        q, k, v = (part.reshape(n, -1, DIM) for part in (q, k, v))
        if layer.cos is not None:
            q, k = (rotate(part, layer.cos[:n], layer.sin[:n]) for part in (q, k))
        change = norm(apply(layer.out, attend(weights, q, k, v).reshape(n, -1)), layer.post_attn_norm)
        x = x + change * weights.residual_scale
        inner = apply(layer.gate_up, norm(x, layer.mlp_norm))
        gate, up = inner.chunk(2, dim=1) if weights.gated else (inner, 1.0)
        change = norm(apply(layer.down, act[weights.activation](gate) * up), layer.post_mlp_norm)
        x = x + change * weights.residual_scale
    logits = norm(x, weights.final_norm) @ weights.lm_head.dequantize().double().T
    return cap(logits * weights.logit_scale, weights.logit_softcap)


def causal(begin, end):
    """A plan for rows begin..end-1 of one sequence: what is cached, and each other up to themselves."""
    n = end - begin
    return AttentionPlan([AttentionSpan(0, begin), AttentionSpan(begin, n, limits=torch.arange(1, n + 1))], n)


def run_in_chunks(decoder, hidden, bounds):
    out = []
    for begin, end in pairwise(bounds):
        at = torch.arange(begin, end)
        out.append(decoder.run(hidden[begin:end].clone(), at, at, causal(begin, end))[0])
    return torch.cat(out)


@pytest.mark.parametrize(
    ("form", "bound"), [("f32", 1e-5), ("bf16", 1e-5), ("q8", 3e-2), ("q4", 3e-2), ("mixed", 3e-2)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_torch(form, bound, kind):
    weights, hidden = make_weights(form, KINDS[kind]), rows_of(37, HIDDEN)
    logits = run_in_chunks(make_decoder(weights), hidden, [0, 20, 37])
    expected = reference(weights, hidden)
    assert (logits - expected).norm() / expected.norm() < bound


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.int8, 2e-2)])
def test_a_narrow_cache_stays_near(dtype, bound):
    weights, hidden = make_weights("f32"), rows_of(37, HIDDEN)
    logits = run_in_chunks(make_decoder(weights, dtype), hidden, [0, 20, 37])
    expected = reference(weights, hidden)
    assert 1e-4 < (logits - expected).norm() / expected.norm() < bound


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("q4", torch.float32),
        ("q8", torch.bfloat16),
        ("q4", torch.int8),
        ("bf16", torch.int8),
        ("f32", torch.float32),
        ("mixed", torch.float32),
    ],
)
def test_same_bits_stepping_and_in_chunks_on_one_and_two_threads(form, dtype, kind):
    weights, hidden = make_weights(form, KINDS[kind]), rows_of(70, HIDDEN)
    expected = run_in_chunks(make_decoder(weights, dtype), hidden, list(range(71)))
    for threads in (1, 2):
        kernels.set_threads(threads)
        for bounds in ([0, 70], [0, 1, 3, 7, 24, 64, 70], [0, 33, 70]):
            assert torch.equal(run_in_chunks(make_decoder(weights, dtype), hidden, bounds), expected)


def test_same_bits_for_a_tree_as_for_its_paths():
    """Nodes 0, 1, 2 after a prefix of 20: 1 and 2 are children of 0, and their slots lie anywhere."""
    weights, hidden = make_weights("q4"), rows_of(23, HIDDEN)
    tree = make_decoder(weights)
    prefix = torch.arange(20)
    tree.run(hidden[:20].clone(), prefix, prefix, causal(0, 20), logits=False)
    slots = torch.tensor([50, 41, 77])
    mask = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.uint8)
    plan = AttentionPlan([AttentionSpan(0, 20), AttentionSpan(0, 3, slots=slots, mask=mask)], 3)
    logits, *_ = tree.run(hidden[20:].clone(), torch.tensor([20, 21, 21]), slots, plan)
    for child in (21, 22):
        path = [*range(21), child]
        assert torch.equal(
            run_in_chunks(make_decoder(weights), hidden[path], list(range(23)))[-2:], logits[[0, child - 20]]
        )


def test_head_rows_layer_ranges_and_hidden():
    weights, hidden = make_weights("q4"), rows_of(9, HIDDEN)
    at, plan = torch.arange(9), causal(0, 9)
    decoder, residual = make_decoder(weights), hidden.clone()
    logits, *_ = decoder.run(residual, at, at, plan)
    rows = torch.tensor([8, 2])
    assert torch.equal(decoder.run(hidden.clone(), at, at, plan, lm_head_rows=rows)[0], logits[rows])
    partly = hidden.clone()
    assert decoder.run(partly, at, at, plan, logits=False, layers=(0, 2))[:2] == (None, None)
    assert torch.equal(decoder.run(partly, at, at, plan, layers=(2, LAYERS))[0], logits)
    assert torch.equal(partly, residual)


@pytest.mark.parametrize("vocab", [1, 203, 256, 700])
def test_top_logits_are_the_largest_the_lower_token_first(vocab):
    weights = make_weights("f32", KINDS["gemma2"])
    weight = make_layer("f32", vocab, HIDDEN, 99).dequantize()
    weight[vocab // 2 :: 3] = weight[0].clone()  # equals, in several blocks
    weights = replace(weights, lm_head=kernels.pack_f32(weight))
    decoder, hidden, at = make_decoder(weights), rows_of(9, HIDDEN), torch.arange(9)
    for k in sorted({1, 2, 7, 300, vocab}):
        if k > vocab:
            continue
        logits, top, _ = decoder.run(hidden.clone(), at, at, causal(0, 9), top_k=k, lse=True)
        expected = logits.sort(dim=1, descending=True, stable=True)
        assert torch.equal(top.tokens, expected.indices[:, :k])
        assert torch.equal(top.logits, expected.values[:, :k])
        assert (top.lse - logits.double().logsumexp(1)).abs().max() < 1e-6
        rows = torch.tensor([4])
        nothing, alone, _ = decoder.run(hidden.clone(), at, at, causal(0, 9), rows, logits=False, top_k=k, lse=True)
        assert nothing is None
        assert torch.equal(alone.tokens, top.tokens[rows])
        assert torch.equal(alone.lse, top.lse[rows])


def test_picked_logits_are_those_of_the_tokens_asked_for():
    decoder, hidden, at = make_decoder(make_weights("q4")), rows_of(9, HIDDEN), torch.arange(9)
    logits, *_ = decoder.run(hidden.clone(), at, at, causal(0, 9))
    rows, picks = torch.tensor([4, 8]), torch.tensor([[0, 3, 3], [logits.shape[1] - 1, 7, 0]])
    nothing, top, _ = decoder.run(hidden.clone(), at, at, causal(0, 9), rows, logits=False, top_k=1, picks=picks)
    assert nothing is None
    assert torch.equal(top.picked, logits[rows].gather(1, picks))
    _, top, _ = decoder.run(hidden.clone(), at, at, causal(0, 9), rows, logits=False, top_k=1, picks=picks[:, :0])
    assert top.picked.shape == (2, 0)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])  # the second caps its logits
@pytest.mark.parametrize("threads", [1, 2])
def test_logits_that_are_not_kept_are_the_same(kind, threads):
    n = 40
    weights = make_weights("q4", KINDS[kind])
    weights = replace(weights, lm_head=kernels.pack_q8(*kernels.quantize_q8(rows_of(700, HIDDEN, 99))))
    decoder, hidden, at = make_decoder(weights), rows_of(n, HIDDEN), torch.arange(n)
    picks = torch.arange(2 * n).view(n, 2) * 8 % 700
    kernels.set_threads(threads)
    logits, kept, _ = decoder.run(hidden.clone(), at, at, causal(0, n), top_k=2, lse=True, picks=picks)
    nothing, top, _ = decoder.run(hidden.clone(), at, at, causal(0, n), logits=False, top_k=2, lse=True, picks=picks)
    assert nothing is None
    for name in ("tokens", "logits", "lse", "picked"):
        assert torch.equal(getattr(top, name), getattr(kept, name))
    assert torch.equal(top.picked, logits.gather(1, picks))


@pytest.mark.parametrize("n", [3, 40])
@pytest.mark.parametrize("threads", [1, 2])
def test_tokens_drawn_in_a_pass_are_those_drawn_from_its_logits(n, threads):
    kernels.set_threads(threads)
    decoder, hidden, at = make_decoder(make_weights("q4")), rows_of(n, HIDDEN), torch.arange(n)
    logits, _, nothing = decoder.run(hidden.clone(), at, at, causal(0, n))
    assert nothing == []
    options = [kernels.Truncation(0.8), kernels.Truncation(1.0, top_k=9, top_p=0.9)]
    draws = [(row, kernels.TokenDraw(options[row % 2], row / n + i / 100)) for row in (2, 0, 1) for i in range(5)]
    found = decoder.run(hidden.clone(), at, at, causal(0, n), logits=False, draws=draws)
    assert (found.logits, found.top) == (None, None)
    assert found.drawn == kernels.draw(logits[[row for row, _ in draws]], [draw for _, draw in draws])
    only = decoder.run(hidden.clone(), at, at, causal(0, n), at[2:3], logits=False, top_k=1, draws=[(0, draws[0][1])])
    assert only.drawn == found.drawn[:1]
    with pytest.raises(ValueError, match="indices"):
        decoder.run(hidden.clone(), at, at, causal(0, n), draws=[(n, draws[0][1])])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("threads", [1, 2])
def test_hidden_states_are_the_lm_heads_input_of_all_rows_by_slot(kind, threads):
    kernels.set_threads(threads)
    weights, hidden = make_weights("q4", KINDS[kind]), rows_of(9, HIDDEN)
    at, slots, hidden_states = torch.arange(9), torch.arange(9).flip(0) + 30, torch.zeros(CAPACITY, HIDDEN)
    plan = AttentionPlan([AttentionSpan(30, 9, slots=slots, limits=torch.arange(1, 10))], 9)
    make_decoder(weights, hidden_states=hidden_states).run(hidden, at, slots, plan, torch.tensor([3]))
    final = weights.final_norm
    expected = (
        kernels.layer_norm(hidden, final.weight, final.bias, EPS)
        if final.bias is not None
        else kernels.rms_norm(hidden, final.weight, EPS)
    )
    assert torch.equal(hidden_states[slots], expected)
    assert not hidden_states[:30].any()
    assert not hidden_states[39:].any()


def make_table():
    return Table(torch.randint(-128, 128, (VOCAB, HIDDEN)).to(torch.int8), torch.rand(VOCAB, HIDDEN // 32).half() / 100)


@pytest.mark.parametrize("scale", [1.0, 9.75])
@pytest.mark.parametrize("threads", [1, 2])
def test_tokens_and_input_embeddings_are_the_rows_that_they_stand_for(scale, threads):
    kernels.set_threads(threads)
    table, embeds, at = make_table(), rows_of(9, HIDDEN), torch.arange(9)
    weights = replace(make_weights("q4"), embed=table, embed_scale=scale)
    decoder, tokens = make_decoder(weights), [VOCAB - 1, 0, 7, 7, 3, 50, 4, 1, 2]
    hidden = table.rows(torch.tensor(tokens)) * scale
    expected, *_ = decoder.run(hidden.clone(), at, at, causal(0, 9))
    assert torch.equal(decoder.run(PassInputs(tokens), list(at), list(at), causal(0, 9))[0], expected)
    given = {1: embeds[4], 8: embeds[1]}
    tokens[8] = -1
    for row, embed in given.items():
        hidden[row] = embed
    expected, *_ = decoder.run(hidden, at, at, causal(0, 9))
    inputs = PassInputs(tokens, [given.get(row) for row in range(9)])
    assert torch.equal(decoder.run(inputs, at, at, causal(0, 9))[0], expected)


@pytest.mark.parametrize("form", ["q4", "q8", "f32", "mixed"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_draft_head_fuses_an_input_embedding_with_its_tokens_or_takes_it_alone(form, threads):
    kernels.set_threads(threads)
    table, store, at = make_table(), rows_of(9, HIDDEN), torch.arange(5)
    fuse = FusedLinear(make_layer(form, HIDDEN, 2 * HIDDEN, 5), rows_of(1, HIDDEN)[0])
    decoder = make_decoder(replace(make_weights("q4"), embed=table, fuse=fuse))
    tokens, embeds = [3, -1, VOCAB - 1, 0, -1], [store[4], store[0], None, store[8], store[4]]
    before = torch.stack([store[4], torch.zeros(HIDDEN), store[8]])
    hidden = store[[0, 0, 0, 0, 4]]
    hidden[[0, 2, 3]] = fuse.packed(torch.cat([before, table.rows(torch.tensor([3, VOCAB - 1, 0]))], dim=1), fuse.bias)
    expected, *_ = decoder.run(hidden, at, at, causal(0, 5))
    assert torch.equal(decoder.run(PassInputs(tokens, embeds), at, at, causal(0, 5))[0], expected)
    for row in range(5):
        inputs = PassInputs(tokens[row : row + 1], embeds[row : row + 1])
        alone = decoder.run(inputs, [row], [row], causal(row, row + 1))
        assert torch.equal(alone[0][0], expected[row])


def test_rows_that_can_not_be_read_are_refused():
    vector, at = torch.zeros(HIDDEN), torch.arange(2)
    decoder = make_decoder(replace(make_weights("q4"), embed=make_table()))
    for inputs in (
        PassInputs([1, VOCAB]),
        PassInputs([1, -1]),
        PassInputs([1, -1], [vector, None]),
        PassInputs([1, 2], [vector]),
        PassInputs([1, 2], [vector, vector.double()]),
        PassInputs([1, 2], [vector, vector[1:]]),
        PassInputs([1, 2], [vector, torch.zeros(2 * HIDDEN)[::2]]),
    ):
        with pytest.raises(ValueError, match=r"expected|a row has"):
            decoder.run(inputs, at, at, causal(0, 2))
    with pytest.raises(ValueError, match="no table"):
        make_decoder(make_weights("q4")).run(PassInputs([1, 2]), at, at, causal(0, 2))
    wide = Table(torch.zeros(4, HIDDEN + 32, dtype=torch.int8), torch.ones(4, HIDDEN // 32 + 1).half())
    for wrong in (
        {"embed": wide},
        {"lm_head": make_layer("mixed", VOCAB, HIDDEN)},
        {"fuse": FusedLinear(make_layer("q4", HIDDEN, HIDDEN, 5))},
        {"fuse": FusedLinear(make_layer("q4", HIDDEN, 2 * HIDDEN, 5), vector[1:])},
    ):
        with pytest.raises(ValueError, match="expected"):
            make_decoder(replace(make_weights("q4"), **wrong))


@pytest.mark.parametrize(
    ("part", "integers"),
    [
        ("slots", array("q", [1, 2])),
        ("slots", array("B", [1, 2, 3])),
        ("limits", array("q", [1])),
        ("mask", array("B")),
    ],
)
def test_arrays_of_another_size_are_refused(part, integers):
    with pytest.raises(ValueError, match="bytes"):
        AttentionPlan([AttentionSpan(0, 3, **{part: integers})], 2)


def test_calls_from_several_threads():
    from concurrent.futures import ThreadPoolExecutor

    kernels.set_threads(2)
    weights, hidden = make_weights("q4"), rows_of(30, HIDDEN)
    expected = run_in_chunks(make_decoder(weights), hidden, [0, 30])
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(run_in_chunks, make_decoder(weights), hidden, [0, 5, 6, 30]) for _ in range(12)]
        assert all(torch.equal(job.result(), expected) for job in jobs)


def test_refuses_what_does_not_fit():
    decoder, hidden, at = make_decoder(make_weights("q4")), rows_of(3, HIDDEN), torch.arange(3)
    with pytest.raises(ValueError, match="int64"):
        decoder.run(hidden, at.int(), at, causal(0, 3))
    with pytest.raises(ValueError, match="for 3 rows"):
        decoder.run(hidden, at, at, causal(0, 2))
    with pytest.raises(ValueError, match="hidden states"):
        decoder.run(hidden[:, :-1], at, at, causal(0, 3))
    with pytest.raises(ValueError, match="indices"):
        decoder.run(hidden, at + CAPACITY, at, causal(0, 3))
    with pytest.raises(ValueError, match="indices"):
        decoder.run(hidden, at, at - 1, causal(0, 3))
    with pytest.raises(ValueError, match="beyond the cache"):
        decoder.run(hidden, at, at, AttentionPlan([AttentionSpan(CAPACITY - 1, 2)], 3))
    for picks in (torch.full((3, 1), 10**6), torch.full((3, 1), -1), torch.zeros(2, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"int64 \[3|indices"):
            decoder.run(hidden, at, at, causal(0, 3), top_k=1, picks=picks)
    with pytest.raises(ValueError, match="picks"):
        decoder.run(hidden, at, at, causal(0, 3), top_k=1, picks=at)
    first, *others = decoder.weights.layers
    for wrong in ({"sin": None}, {"cos": first.cos[:, 1:]}, {"q_norm": torch.ones(HEADS * DIM)}):
        with pytest.raises(ValueError, match=r"expected|in pairs"):
            make_decoder(replace(decoder.weights, layers=[replace(first, **wrong), *others]))
    for hidden_states in (torch.zeros(CAPACITY - 1, HIDDEN), torch.zeros(CAPACITY, HIDDEN + 1), torch.zeros(CAPACITY)):
        with pytest.raises(ValueError, match="hidden_states"):
            make_decoder(decoder.weights, hidden_states=hidden_states)
    with pytest.raises(ValueError, match="hidden_states"):
        make_decoder(decoder.weights, hidden_states=torch.zeros(CAPACITY, HIDDEN, dtype=torch.float64))
