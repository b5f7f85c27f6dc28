import pytest
import torch
from kernel_helpers import FORMATS, make_layer, rows_of

from outlay import kernels

# Inputs are rounded to 8 bits in groups of 32: an error of at most half a step in each product. The bounds are on the
# whole result's relative error.
BOUNDS = {"bf16": 1e-6, "f32": 1e-6, "sparse_bf16": 1e-6}  # of all others 8e-3


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("m", "k"), [(576, 576), (40, 96), (1, 32), (100, 1536)])
def test_close_to_dequantized(form, m, k):
    layer, x = make_layer(form, m, k), rows_of(9, k)
    expected = x.double() @ layer.dequantize().double().T
    assert (layer(x) - expected).norm() / expected.norm() < BOUNDS.get(form, 8e-3)


@pytest.mark.parametrize("form", FORMATS)
def test_no_rows_give_no_rows(form):
    assert make_layer(form, 48, 64)(torch.empty(0, 64)).shape == (0, 48)


@pytest.mark.parametrize("form", ["q4", "q8"])
def test_exact_when_inputs_need_no_rounding(form):
    k = 256
    layer = make_layer(form, 48, k)
    x = torch.randint(-127, 128, (6, k // 32, 32), generator=torch.Generator().manual_seed(3)).float()
    x[..., 0] = 127.0
    x = x.view(6, k)
    expected = x.double() @ layer.dequantize().double().T
    assert (layer(x) - expected).norm() / expected.norm() < 1e-6


@pytest.mark.parametrize("form", ["q4", "q8"])
def test_largest_products_do_not_saturate(form):
    m, k = 16, 64
    scales = torch.ones(m, k // 32).half()
    for x_sign in (1.0, -1.0):
        x = torch.full((2, k), 127.0) * x_sign
        if form == "q4":
            layer = kernels.pack_q4(torch.full((m, k), 15, dtype=torch.uint8), scales, scales * -3)
            expected = 127 * k * 12 * x_sign
        else:
            layer = kernels.pack_q8(torch.full((m, k), -128, dtype=torch.int8), scales)
            expected = 127 * k * -128 * x_sign
        assert (layer(x) == expected).all()


def test_q4_unpacks_to_what_was_packed():
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(0, 16, (37, 96), dtype=torch.uint8, generator=generator)
    scales, minima = (torch.randn(37, 3, generator=generator).half() for _ in range(2))
    expected = (q.view(37, 3, 32) * scales.float()[..., None] + minima.float()[..., None]).view(37, 96)
    layer = kernels.pack_q4(q, scales, minima)
    assert torch.equal(layer.dequantize(), expected)
    assert layer.nbytes == 48 * 96 * 20 // 32


@pytest.mark.parametrize("form", FORMATS)
def test_same_bits_at_any_width_chunk_order_and_thread_count(form):
    k = 192
    layer, x = make_layer(form, 100, k), rows_of(128, k)
    single = torch.cat([layer(row[None]) for row in x])
    for width in range(2, 129):
        assert torch.equal(torch.cat([layer(part) for part in x.split(width)]), single)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(5))
    assert torch.equal(layer(x[order]), single[order])
    for threads in (2, 3, 1, 2):
        kernels.set_threads(threads)
        for width in (1, 5, 128):
            assert torch.equal(torch.cat([layer(part) for part in x.split(width)]), single)


@pytest.mark.parametrize("form", FORMATS)
def test_same_bits_where_the_inputs_take_several_panels(form):
    layer, x = make_layer(form, 40, 8192), rows_of(100, 8192)
    assert torch.equal(layer(x), torch.cat([layer(row[None]) for row in x]))


@pytest.mark.parametrize("form", FORMATS)
def test_bias_and_adding(form):
    layer, x = make_layer(form, 40, 64), rows_of(5, 64)
    plain, bias, base = layer(x), rows_of(1, 40)[0], rows_of(5, 40, seed=2)
    assert torch.equal(layer(x, bias=bias), plain + bias)
    target = base.clone()
    assert layer(x, add_to=target) is target
    assert torch.equal(target, base + plain)


@pytest.mark.parametrize("form", ["q4", "q8"])
def test_zero_and_tiny_inputs(form):
    layer = make_layer(form, 32, 64)
    for size in (0.0, 1e-38, 1e-44):
        assert layer(torch.full((2, 64), size)).abs().max() < 1e-30


def test_parts_give_the_bits_that_they_give_alone():
    layers, x = (
        [make_layer(form, m, 96) for form, m in (("q8", 5), ("f32", 33), ("q4", 100), ("q8", 1))],
        rows_of(9, 96),
    )
    whole, bias, base = kernels.stack(layers), rows_of(1, 139)[0], rows_of(9, 139, seed=2)
    alone = torch.cat([layer(x) for layer in layers], dim=1)
    assert torch.equal(whole(x), alone)
    assert torch.equal(whole(x, bias=bias, add_to=base.clone()), base + (alone + bias))
    assert torch.equal(whole.dequantize(), torch.cat([layer.dequantize() for layer in layers]))
    assert whole.nbytes == sum(layer.nbytes for layer in layers)
    with pytest.raises(ValueError, match="one input"):
        kernels.stack([make_layer("q8", 5, 96), make_layer("q8", 5, 64)])


def test_refuses_wrong_shapes():
    layer = make_layer("q4", 32, 64)
    with pytest.raises(ValueError, match="expected float32"):
        layer(torch.zeros(2, 32))
    with pytest.raises(ValueError, match="expected float32"):
        layer(torch.zeros(2, 64, dtype=torch.float64))
    with pytest.raises(ValueError, match="multiple of 32"):
        kernels.quantize_q8(torch.zeros(4, 40))
