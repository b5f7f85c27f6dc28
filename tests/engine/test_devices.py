"""Passes on another device than the CPU, as far as can be seen without one: shapes, dtypes, where tensors lie."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from outlay.engine.passes import LayeredPass, pass_for
from outlay.models.decoder import InputsEmbeds
from outlay.models.draft_head import untrained_draft_head
from outlay.models.linear import Int4Linear, Int8Linear, nibbles, pack
from outlay.models.quantized import QuantizedWeight, quantize
from outlay.testing import tiny_model
from outlay.tree.attention import aligned, attend, attend_reference
from outlay.tree.cache import Cache
from outlay.tree.plan import plan_pass
from outlay.tree.token_tree import Tree


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_pass_over_a_tree_stays_on_its_device(dtype, device):
    model = tiny_model(device=device, dtype=dtype)
    cache = Cache(model.decoder.config, model.decoder.dtype, model.decoder.device, limit=256)
    run = pass_for(model.decoder, cache)
    assert isinstance(run, LayeredPass), "the native kernels are for the CPU"
    tree = Tree(cache)
    tree.append([1, 2, 3, 4])
    twin = tree.fork()
    drafted = tree.extend([tree.tip, tree.tip, tree.tip], [5, 6, 7])
    twin.append([8])
    groups = [(tree, [*tree.tip.path(), *drafted]), (twin, [twin.tip])]
    plan = plan_pass(groups, cache.positions, model.decoder.config.windows)
    logits = run(plan, [3, 4, 7]).logits
    assert logits.shape == (3, 257)
    assert logits.dtype == torch.float32
    assert logits.device.type == device
    assert str(cache.layers[0].keys.dtype) == f"torch.{dtype}"


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_a_draft_head_reads_is_on_its_device_wherever_the_input_embeddings_are(device):
    """Prompt tokens and the zeros before a text are on the CPU, hidden states on the target's device."""
    decoder = untrained_draft_head(tiny_model(device=device), 1, 128).decoder
    state = torch.zeros(decoder.config.hidden_size, device=device)
    embeds = InputsEmbeds(
        (0, 1, 3),
        (state, state.new_zeros(state.shape, device="cpu"), decoder.prompts[0]),
        (False, False, True),
    )
    tokens = torch.zeros(4, dtype=torch.int64, device=device)
    x = decoder.inputs(tokens, tokens, embeds)
    assert (x.shape, x.dtype, x.device.type) == ((4, decoder.config.hidden_size), decoder.dtype, device)


def test_packed_products_have_the_shapes_that_torch_wants_on_a_gpu():
    with FakeTensorMode():
        q, scales = torch.empty(64, 96, dtype=torch.uint8, device="cuda"), torch.empty(64, 3, device="cuda").half()
        four = Int4Linear(QuantizedWeight("q4", q, scales, scales), torch.empty(64, device="cuda"))
        eight = Int8Linear(q.to(torch.int8), torch.empty(64, device="cuda").bfloat16(), None)
        for layer, nbytes in ((four, 64 * 96 * 5 // 8), (eight, 64 * 96 + 2 * 64)):
            y = layer(torch.empty(5, 96, device="cuda"))
            assert (y.shape, y.dtype, y.device.type) == ((5, 64), torch.float32, "cuda")
            assert layer.nbytes == nbytes


def test_four_bits_lie_as_torch_multiplies_them_on_a_gpu():
    """As torch's own tests pack them (`_group_quantize_tensor`): (q - 8) * scale + zero, an even column's q on top."""
    weight = quantize(torch.randn(32, 64), "q4")
    packed = nibbles(weight.q)
    assert (packed.shape, packed.dtype) == ((32, 32), torch.uint8)
    q = torch.stack((packed >> 4, packed & 15), dim=-1).flatten(1).unflatten(1, (-1, 32)).float()
    scales, zeros = Int4Linear(weight, None).scales_and_zeros.float().transpose(0, 1).unsqueeze(-2).unbind(-1)
    held = ((q - 8) * scales + zeros).flatten(1)
    torch.testing.assert_close(held, weight.dequantize(), atol=0.02, rtol=0.01)


@pytest.mark.parametrize("length", [1, 15, 16, 100])
def test_a_bias_is_aligned_and_the_same(length):
    bias = torch.randn(6, length)
    padded = aligned(bias)
    assert torch.equal(padded, bias)
    assert padded.stride(0) % 16 == 0
    assert padded.stride(1) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", [1, 32, 45])
def test_attention_on_a_gpu_has_the_shapes_of_the_reference(n, masked, dtype):
    q, k = torch.empty(3, n, 64, device="meta", dtype=dtype), torch.empty(3, 100, 64, device="meta", dtype=dtype)
    bias = torch.empty(n, 100, device="meta", dtype=dtype) if masked else None
    for found, wanted in zip(attend(q, k, k, bias, 0.1), attend_reference(q, k, k, bias, 0.1), strict=True):
        assert (found.shape, found.dtype, found.device) == (wanted.shape, wanted.dtype, wanted.device)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", [1, 32, 45])
def test_attention_on_a_gpu_is_that_of_the_reference(n, masked, dtype, close):
    q, k, v = (torch.randn(3, rows, 64, device="cuda", dtype=dtype) for rows in (n, 200, 200))
    k, v = k[:, 50:151], v[:, 50:151]
    bias = torch.zeros(n, 101, device="cuda", dtype=dtype).masked_fill_(torch.rand(n, 101, device="cuda") < 0.5, -1e9)
    bias = bias if masked else None
    for found, wanted in zip(attend(q, k, v, bias, 0.1), attend_reference(q, k, v, bias, 0.1), strict=True):
        torch.testing.assert_close(found, wanted, atol=close, rtol=close)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("form", ["int4", "int8"])
def test_packed_products_on_a_gpu_are_near_what_they_stand_for(form, rows):
    weight, x = torch.randn(64, 256), torch.randn(rows, 256)
    layer = pack(weight, form, device="cuda")
    expected = x @ quantize(weight, "q4" if form == "int4" else "q8").dequantize().T
    assert layer.format in (form, "bfloat16"), "older torch has no int8 product there"
    assert (layer(x.cuda()).cpu() - expected).norm() / expected.norm() < 0.015


@pytest.mark.gpu
def test_a_gpu_writes_what_the_cpu_writes():
    from outlay import LM
    from outlay.engine.engine import Engine

    prompts = ["The first", "A second prompt, which is longer", "3"]
    texts = [
        [result.tokens for result in LM(tiny_model(device=device), Engine()).generate_batch(prompts, max_tokens=24)]
        for device in ("cpu", "cuda")
    ]
    assert texts[0] == texts[1]
