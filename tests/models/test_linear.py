"""Linear layers in every format, with our own kernels and without: near what they stand for, and row by row."""

from __future__ import annotations

import pytest
import torch

from outlay.models import linear
from outlay.models.linear import FORMATS, pack
from outlay.models.quantized import fits, quantize, stack_rows

# How far (relative, RMS) a product may be from that with the weights the format holds.
LIMIT = {"float32": 1e-6, "bfloat16": 0.006, "float16": 0.002, "int8": 0.015, "int4": 0.015}


@pytest.fixture(params=[True, False], ids=["native", "torch"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not linear.native_kernels():
        pytest.skip("our own kernels do not run on this machine")
    if not request.param:
        monkeypatch.setattr(linear, "native_kernels", lambda: False)
    return request.param


def held(weight: torch.Tensor, form: str) -> torch.Tensor:
    """The weight that a format stands for."""
    if form in linear.FLOATS:
        return weight.to(linear.FLOATS[form]).float()
    return quantize(weight, "q4" if form == "int4" else "q8").dequantize()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_products_are_near_what_the_format_stands_for(form: str, bias: bool, exact: bool, native: bool) -> None:
    torch.manual_seed(0)
    weight, added = torch.randn(48, 96) * 0.05, torch.randn(48) if bias else None
    layer = pack(weight, form, added, exact_output=exact)
    assert (layer.in_features, layer.out_features) == (96, 48)
    for rows in (1, 3, 8, 70):
        x = torch.randn(rows, 96)
        expected = torch.nn.functional.linear(x, held(weight, layer.format), added)
        got = layer(x)
        assert got.dtype == torch.float32
        assert (got - expected).norm() / expected.norm() < LIMIT[form]


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_rows_do_not_influence_each_other(form: str, native: bool) -> None:
    layer = pack(torch.randn(32, 64), form)
    x = torch.randn(5, 64) * torch.tensor([1.0, 1000.0, 1e-3, 50.0, 1.0])[:, None]
    alone = torch.cat([layer(row[None]) for row in x])
    assert torch.equal(layer(x), alone)


@pytest.mark.parametrize("shape", [(32, 40), (20, 64), (7, 33)])
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_shapes_that_a_format_cannot_hold_are_held_wider(shape: tuple[int, int], form: str, native: bool) -> None:
    weight = torch.randn(*shape)
    x = torch.randn(2, shape[1])
    layer = pack(weight, form)
    assert layer.format == form or not fits(weight) or not native
    expected = x @ held(weight, layer.format).T
    assert (layer(x) - expected).norm() / expected.norm() < LIMIT[form]


def test_bytes_are_those_that_are_read(native: bool) -> None:
    weight = torch.randn(64, 128)
    sizes = {form: pack(weight, form).nbytes / weight.numel() for form in FORMATS}
    assert sizes["float32"] == 4
    assert sizes["bfloat16"] == sizes["float16"] == 2
    assert 1 <= sizes["int8"] < 1.1
    assert sizes["int4"] == 0.625


def test_an_outlier_row_is_not_squeezed_into_one_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "native_kernels", lambda: False)
    weight = torch.randn(16, 64) * 0.01
    weight[:, 3] = 30.0
    assert pack(weight, "int8").format == "float16"


@pytest.mark.parametrize("kind", ["q4", "q8"])
def test_rounding_is_to_the_nearest(kind: str) -> None:
    weight = torch.randn(6, 64)
    weight[2] = 0
    quantized = quantize(weight, kind)
    step = quantized.scales.float().repeat_interleave(32, dim=1)
    # Half a step, and what rounding the scale and the minimum to float16 adds at the ends.
    assert ((quantized.dequantize() - weight).abs() <= 0.52 * step + 2e-3 * weight.abs()).all()
    again = quantize(quantized.dequantize(), kind)
    torch.testing.assert_close(again.dequantize(), quantized.dequantize(), atol=2e-3, rtol=2e-3)
    assert torch.equal(quantized.rows(torch.tensor([4, 1])), quantized.dequantize()[[4, 1]])
    both = stack_rows([quantized, quantized.take(torch.tensor([0]))])
    assert torch.equal(both.dequantize()[6], quantized.dequantize()[0])
