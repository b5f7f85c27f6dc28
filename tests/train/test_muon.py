"""Muon: orthogonal directions, and the steps of torch's own."""

from __future__ import annotations

import pytest
import torch

from outlay.train.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_directions_have_the_matrixs_singular_vectors_and_values_near_1(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonal(matrix) @ v.T
    values = found.diagonal()
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert torch.allclose(found, values.diag(), atol=1e-4)


def test_no_gradient_gives_no_direction():
    assert orthogonal(torch.zeros(3, 5)).abs().max() == 0


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_steps_are_those_of_torch(shape):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}
    optimizers = [
        Muon([ours], **options, dtype=torch.bfloat16),
        torch.optim.Muon([theirs], **options, adjust_lr_fn="match_rms_adamw"),
    ]
    for step in range(5):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(2 + step))
        for matrix, optimizer in zip((ours, theirs), optimizers, strict=True):
            matrix.grad = gradient.clone()
            optimizer.step()
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert not torch.allclose(ours, start, atol=0.01)


def test_what_has_no_gradient_stays():
    matrix = torch.nn.Parameter(torch.ones(2, 2))
    Muon([matrix], 0.1).step()
    assert torch.equal(matrix, torch.ones(2, 2))


def test_it_goes_on_from_what_it_kept():
    def trained(optimizer, matrix, steps):
        for step in steps:
            matrix.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    whole, part = (torch.nn.Parameter(torch.ones(4, 6)) for _ in range(2))
    trained(Muon([whole], 0.1), whole, range(6))
    first = Muon([part], 0.1)
    trained(first, part, range(3))
    second = Muon([part], 0.1)
    second.load_state_dict(first.state_dict())
    trained(second, part, range(3, 6))
    assert torch.equal(whole, part)
