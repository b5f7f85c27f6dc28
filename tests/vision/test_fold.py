"""Folding of batch normalisation in any network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from outlay import FailureError
from outlay.vision import fold


def randomised(net):
    """Gives every normalisation statistics and weights that are not the identity."""
    torch.manual_seed(1)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.running_mean, part.bias):
                nn.init.normal_(tensor)
            for tensor in (part.running_var, part.weight):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return net.eval()


def norms(net):
    return [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]


class Fork(nn.Module):
    """Only `one` can be folded: the output of `two` is read twice, `three` is called twice."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, x):
        x = self.norms[0](self.one(x))
        y = self.two(x)
        x = self.norms[1](y) + y
        return self.norms[2](self.three(x)) + self.norms[3](self.three(x + 1))


def test_only_what_a_normalisation_alone_reads_is_folded():
    net, x = randomised(Fork()), torch.rand(2, 3, 6, 6)
    folded = fold(net, x)
    assert isinstance(folded.norms[0], nn.Identity)
    assert len(norms(folded)) == 3
    assert torch.allclose(folded(x), net(x), atol=1e-5)
    assert len(norms(net)) == 4


def test_a_convolution_that_does_more_than_its_class_says_is_found():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight / self.weight.norm()
            return nn.functional.conv2d(x, weight, self.bias)

    net = randomised(nn.Sequential(Standardised(3, 4, 1), nn.BatchNorm2d(4)))
    with pytest.raises(FailureError, match="not a plain one"):
        fold(net, torch.rand(1, 3, 5, 5))
