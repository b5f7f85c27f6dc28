from functools import partial

import pytest
import torch
import torch.nn.functional as F

from outlay import kernels


def test_exp_is_within_two_in_ten_million():
    x = torch.linspace(-87.2, 88.0, 400_003)
    exact = x.double().exp()
    assert ((kernels.exp(x) - exact).abs() / exact).max() < 2e-7


def test_exp_at_the_ends():
    x = torch.tensor([0.0, -float("inf"), -200.0, 1e-30])
    assert kernels.exp(x).tolist() == [1.0, 0.0, 0.0, 1.0]


def test_rms_norm():
    for size in (576, 64, 13):
        x, weight = torch.randn(7, size), torch.randn(size)
        expected = x.double() * (x.double().square().mean(1, keepdim=True) + 1e-5).rsqrt() * weight.double()
        result = kernels.rms_norm(x, weight, 1e-5)
        assert (result - expected).abs().max() < 2e-6
        assert torch.equal(torch.cat([kernels.rms_norm(row[None], weight, 1e-5) for row in x]), result)


def test_layer_norm():
    for size in (576, 64, 13):
        x, weight, bias = torch.randn(7, size) + 3, torch.randn(size), torch.randn(size)
        expected = torch.nn.functional.layer_norm(x.double(), (size,), weight.double(), bias.double(), 1e-5)
        result = kernels.layer_norm(x, weight, bias, 1e-5)
        assert (result - expected).abs().max() < 5e-6
        assert torch.equal(torch.cat([kernels.layer_norm(row[None], weight, bias, 1e-5) for row in x]), result)


@pytest.mark.parametrize(
    ("kind", "exactly"),
    [
        ("silu", F.silu),
        ("gelu", F.gelu),
        ("gelu_tanh", partial(F.gelu, approximate="tanh")),
        ("relu", F.relu),
        ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
    ],
)
def test_activations(kind, exactly):
    x, up = torch.cat([torch.linspace(-20, 20, 4003), torch.tensor([0.0, 100.0, -100.0])]), torch.randn(4006)
    assert (kernels.activate(kind, x) - exactly(x.double())).abs().max() < 3e-6
    near = x.abs() < 5
    assert (kernels.activate(kind, x) - exactly(x.double()))[near].abs().max() < 1e-6
    assert torch.equal(kernels.activate(kind, x, up), kernels.activate(kind, x) * up)


@pytest.mark.parametrize("with_mins", [False, True])
def test_quantized_rows_are_those_that_torch_makes_of_them(with_mins):
    """To the bit, with scales of every size that a half can have."""
    m, k = 70, 96
    q = (
        torch.randint(0, 16, (m, k), dtype=torch.uint8)
        if with_mins
        else torch.randint(-128, 128, (m, k)).to(torch.int8)
    )
    halves = [torch.randint(-(2**15), 2**15, (m, k // 32)).to(torch.int16).view(torch.float16) for _ in range(2)]
    scales, mins = (torch.where(half.isfinite(), half, torch.tensor(6e-8).half()) for half in halves)
    assert (scales.abs() < 6.2e-5).any(), "some are too small for a normal half"
    index = torch.tensor([3, 69, 0, 3])
    expected = q[index].float().view(4, -1, 32) * scales[index].float()[..., None]
    if with_mins:
        expected += mins[index].float()[..., None]
    table = kernels.Table(q, scales, mins if with_mins else None)
    assert torch.equal(table.rows(index), expected.view(4, k))
    assert table.rows(index[:0]).shape == (0, k)


def test_tables_that_are_not_held_so_are_refused():
    q, scales = torch.zeros(4, 64, dtype=torch.int8), torch.ones(4, 2).half()
    for args in (
        (q, scales.float()),
        (q, scales[:, :1]),
        (q, scales, scales),
        (q.to(torch.uint8), scales, scales[:2]),
        (q.T, scales),
    ):
        with pytest.raises(ValueError, match=r"expected|mins"):
            kernels.Table(*args)
    table = kernels.Table(q, scales)
    for index in (torch.tensor([4]), torch.tensor([-1]), torch.tensor([1]).int(), torch.tensor([[1]])):
        with pytest.raises(ValueError, match="expected"):
            table.rows(index)
