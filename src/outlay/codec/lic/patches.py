"""Convolutions whose results have the same bits on every machine: pixels laid out as rows for the kernels' product.

What a stream depends on must be the same for the writer and the reader, and torch's convolutions are not: neither on
two processors nor at two batch sizes. A row of `kernels.pack_f32` has the same bits in any batch and instruction set.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outlay import kernels

Apply = Callable[[Tensor], Tensor]


def exact_network(layers: nn.Sequential) -> Apply:
    """Returns convolutions and rectifiers as a function [1, channels, height, width] -> the same, exact everywhere.

    Args:
        layers: `Conv2d`, `ConvTranspose2d`, `ReLU` and `LeakyReLU`.
    """
    steps = [_exact(layer) for layer in layers]

    def apply(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return apply


def _exact(layer: nn.Module) -> Apply:
    if isinstance(layer, nn.ReLU):
        return lambda x: x.clamp_min(0)
    if isinstance(layer, nn.LeakyReLU):
        slope = torch.tensor(layer.negative_slope, dtype=torch.float32)
        return lambda x: torch.where(x > 0, x, x * slope)
    if isinstance(layer, nn.ConvTranspose2d):
        return _transposed(layer)
    assert isinstance(layer, nn.Conv2d)
    return _Rows(layer.weight.detach(), layer.bias, layer.stride[0], layer.kernel_size[0] // 2)


def _transposed(layer: nn.ConvTranspose2d) -> Apply:
    """A transposed convolution of stride 2: zeros between the inputs, then a convolution with the filters turned."""
    rows = _Rows(layer.weight.detach().transpose(0, 1).flip(2, 3), layer.bias, 1, layer.kernel_size[0] // 2)

    def apply(x: Tensor) -> Tensor:
        spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        spread[:, :, ::2, ::2] = x
        return rows(spread)

    return apply


class _Rows:
    """A convolution as a product of patches and filters."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> None:
        self._packed = kernels.pack_f32(weight.flatten(1).contiguous())
        self._bias = None if bias is None else bias.detach().float().contiguous()
        self._how = {"kernel_size": weight.shape[2], "stride": stride, "padding": padding}
        self._stride = stride

    def __call__(self, x: Tensor) -> Tensor:
        height, width = (-(-side // self._stride) for side in x.shape[2:])
        patches = F.unfold(x, **self._how)[0].T.contiguous()
        return self._packed(patches, self._bias).T.reshape(1, -1, height, width)
