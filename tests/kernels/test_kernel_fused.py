"""The fused decoder against the same network written in torch, and against itself at other widths."""

from itertools import pairwise

import pytest
import torch
from kernel_helpers import attend_exactly, make_layer, rows_of

from outlay import kernels
from outlay.kernels import FusedDecoder, FusedLayer, FusedWeights, Piece, Plan

HIDDEN, HEADS, KV_HEADS, DIM, WIDE, VOCAB, LAYERS, CAPACITY = 96, 6, 2, 32, 160, 203, 3, 96
EPS, SCALE = 1e-5, DIM**-0.5


def make_weights(form, extras=False, rope_dim=DIM):
    vector = lambda size, seed: 1 + 0.1 * rows_of(1, size, seed)[0]  # noqa: E731
    qkv = (HEADS + 2 * KV_HEADS) * DIM
    layers = []
    for i in range(LAYERS):
        seed = 10 * i
        layers.append(
            FusedLayer(
                input_norm=vector(HIDDEN, seed),
                qkv=make_layer(form, qkv, HIDDEN, seed + 1),
                o=make_layer(form, HIDDEN, HEADS * DIM, seed + 2),
                post_norm=vector(HIDDEN, seed + 3),
                gate_up=make_layer(form, 2 * WIDE, HIDDEN, seed + 4),
                down=make_layer(form, HIDDEN, WIDE, seed + 5),
                qkv_bias=rows_of(1, qkv, seed + 6)[0] if extras else None,
                q_norm=vector(DIM, seed + 7) if extras else None,
                k_norm=vector(DIM, seed + 8) if extras else None,
            )
        )
    angles = torch.arange(CAPACITY)[:, None] * 10000.0 ** (-torch.arange(0, rope_dim, 2) / rope_dim)
    head = make_layer("q8" if form == "q4" else form, VOCAB, HIDDEN, 99)
    return FusedWeights(layers, vector(HIDDEN, 98), head, angles.cos(), angles.sin(), HEADS, KV_HEADS, DIM, EPS, SCALE)


def make_decoder(weights):
    cache = [[torch.full((KV_HEADS, CAPACITY, DIM), torch.nan) for _ in range(LAYERS)] for _ in range(2)]
    return FusedDecoder(weights, *cache)


def norm(x, weight):
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


def rotate(x, cos, sin):
    """x [n, heads, dim], cos and sin [n, rope_dim / 2]."""
    half = cos.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None].double(), sin[:, None].double()
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def reference(weights, hidden):
    """Logits of all rows of one causal sequence from position 0, in float64."""
    n, x = len(hidden), hidden.double()
    for layer in weights.layers:
        qkv = norm(x, layer.input_norm) @ layer.qkv.dequantize().double().T
        if layer.qkv_bias is not None:
            qkv = qkv + layer.qkv_bias
        q, k, v = (part.view(n, -1, DIM) for part in qkv.split([HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM], dim=1))
        if layer.q_norm is not None:
            q, k = norm(q, layer.q_norm), norm(k, layer.k_norm)
        q, k = (rotate(part, weights.cos[:n], weights.sin[:n]) for part in (q, k))
        seen = [list(range(i + 1)) for i in range(n)]
        attended, _ = attend_exactly(q, k.transpose(0, 1), v.transpose(0, 1), seen, SCALE)
        x = x + attended.view(n, -1) @ layer.o.dequantize().double().T
        gate, up = (norm(x, layer.post_norm) @ layer.gate_up.dequantize().double().T).chunk(2, dim=1)
        x = x + torch.nn.functional.silu(gate) * up @ layer.down.dequantize().double().T
    return norm(x, weights.final_norm) @ weights.head.dequantize().double().T


def causal(begin, end):
    """A plan for rows begin..end-1 of one sequence: what is cached, and each other up to themselves."""
    n = end - begin
    return Plan([Piece(0, begin), Piece(begin, n, limits=torch.arange(1, n + 1))], n)


def run_in_chunks(decoder, hidden, bounds):
    out = []
    for begin, end in pairwise(bounds):
        at = torch.arange(begin, end)
        out.append(decoder.run(hidden[begin:end].clone(), at, at, causal(begin, end))[0])
    return torch.cat(out)


@pytest.mark.parametrize(("form", "bound"), [("f32", 1e-5), ("bf16", 1e-5), ("q8", 3e-2), ("q4", 3e-2)])
@pytest.mark.parametrize(("extras", "rope_dim"), [(False, DIM), (True, DIM), (True, DIM // 2)])
def test_equals_torch(form, bound, extras, rope_dim):
    weights, hidden = make_weights(form, extras, rope_dim), rows_of(37, HIDDEN)
    logits = run_in_chunks(make_decoder(weights), hidden, [0, 20, 37])
    expected = reference(weights, hidden)
    assert (logits - expected).norm() / expected.norm() < bound


@pytest.mark.parametrize("form", ["q4", "q8", "bf16", "f32"])
def test_same_bits_stepping_and_in_chunks_on_one_and_two_threads(form):
    weights, hidden = make_weights(form, extras=True), rows_of(70, HIDDEN)
    expected = run_in_chunks(make_decoder(weights), hidden, list(range(71)))
    for threads in (1, 2):
        kernels.set_threads(threads)
        for bounds in ([0, 70], [0, 1, 3, 7, 24, 64, 70], [0, 33, 70]):
            assert torch.equal(run_in_chunks(make_decoder(weights), hidden, bounds), expected)


def test_same_bits_for_a_tree_as_for_its_paths():
    """Nodes 0, 1, 2 after a prefix of 20: 1 and 2 are children of 0, and their slots lie anywhere."""
    weights, hidden = make_weights("q4"), rows_of(23, HIDDEN)
    tree = make_decoder(weights)
    prefix = torch.arange(20)
    tree.run(hidden[:20].clone(), prefix, prefix, causal(0, 20), head=False)
    slots = torch.tensor([50, 41, 77])
    mask = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.uint8)
    plan = Plan([Piece(0, 20), Piece(0, 3, slots=slots, mask=mask)], 3)
    logits, best = tree.run(hidden[20:].clone(), torch.tensor([20, 21, 21]), slots, plan, argmax=True)
    assert torch.equal(best, logits.argmax(dim=1))
    for child in (21, 22):
        path = [*range(21), child]
        assert torch.equal(
            run_in_chunks(make_decoder(weights), hidden[path], list(range(23)))[-2:], logits[[0, child - 20]]
        )


def test_head_rows_layer_ranges_and_hidden():
    weights, hidden = make_weights("q4"), rows_of(9, HIDDEN)
    at, plan = torch.arange(9), causal(0, 9)
    decoder, residual = make_decoder(weights), hidden.clone()
    logits, _ = decoder.run(residual, at, at, plan)
    rows = torch.tensor([8, 2])
    chosen, best = decoder.run(hidden.clone(), at, at, plan, head_rows=rows, argmax=True)
    assert torch.equal(chosen, logits[rows])
    assert torch.equal(best, chosen.argmax(dim=1))
    partly = hidden.clone()
    assert decoder.run(partly, at, at, plan, head=False, layers=(0, 2)) == (None, None)
    assert torch.equal(decoder.run(partly, at, at, plan, layers=(2, LAYERS))[0], logits)
    assert torch.equal(partly, residual)


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
    with pytest.raises(ValueError, match="hidden"):
        decoder.run(hidden[:, :-1], at, at, causal(0, 3))
    with pytest.raises(ValueError, match="indices"):
        decoder.run(hidden, at + CAPACITY, at, causal(0, 3))
    with pytest.raises(ValueError, match="indices"):
        decoder.run(hidden, at, at - 1, causal(0, 3))
    with pytest.raises(ValueError, match="beyond the cache"):
        decoder.run(hidden, at, at, Plan([Piece(CAPACITY - 1, 2)], 3))
