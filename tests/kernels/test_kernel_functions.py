import torch

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


def test_silu_mul():
    gate, up = torch.randn(3, 101) * 20, torch.randn(3, 101)
    expected = torch.nn.functional.silu(gate.double()) * up.double()
    assert torch.allclose(kernels.silu_mul(gate, up).double(), expected, rtol=1e-6, atol=1e-30)
