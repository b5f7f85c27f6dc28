"""One-shot aggregation (Lee et al. 2019): a chain of convolutions whose outputs are concatenated once, at its end.

A dense block reads all earlier maps again in each layer; here every layer reads one map of constant width, and a single
1x1 convolution mixes the block's input with the outputs of all layers. VoVNet v1, v2 (a gate, depthwise layers) and
HGNetv2 (light layers, aggregation in two steps, a learned scale and shift after each activation) are built of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Affine(nn.Module):
    """Multiplies by one learned number and adds another."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same shape."""
        return self.scale * x + self.bias


class ConvNorm(nn.Module):
    """A convolution, batch normalisation, and where wanted ReLU and `Affine`.

    Args:
        c_in: channels read.
        c_out: channels written.
        kernel: its side; the sides of the map stay, divided by `stride`.
        stride: of the convolution, or of the depthwise one before it.
        groups: of the convolution.
        act: whether ReLU follows.
        affine: whether a scale and a shift follow the ReLU.
        depthwise: the k x k convolution is done for each channel apart, and a 1x1 one follows it directly.
        padding: zeros around the map; by default those that keep its sides.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        affine: bool = False,
        depthwise: bool = False,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2 if padding is None else padding
        self.depthwise = None
        if depthwise:
            self.depthwise = nn.Conv2d(c_in, c_in, kernel, stride, padding, groups=c_in, bias=False)
            kernel, stride, padding = 1, 1, 0
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(c_out)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()
        self.affine = Affine() if act and affine else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Takes `[batch, c_in, height, width]`."""
        if self.depthwise is not None:
            x = self.depthwise(x)
        out: Tensor = self.affine(self.act(self.norm(self.conv(x))))
        return out


class Gate(nn.Module):
    """Effective squeeze-and-excitation (eSE): a linear layer on the channels' means says how much of each passes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same shape."""
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


@dataclass(frozen=True)
class OSAOptions:
    """How a block is made; the defaults are VoVNet v1's."""

    kernel: int = 3
    """Side of the layers' kernels."""

    aggregation: Literal["one", "two"] = "one"
    """1x1 convolutions that mix the concatenation: one, or one to half of the width and one more (HGNetv2)."""

    depthwise: bool = False
    """v2: a 1x1 convolution reduces the input, each layer is a depthwise convolution and a 1x1 one."""

    light: bool = False
    """HGNetv2: each layer is a 1x1 convolution without activation and a depthwise one."""

    affine: bool = False
    """HGNetv2: a learned scale and shift after each activation."""


class OSABlock(nn.Module):
    """A block of one-shot aggregation.

    Args:
        c_in: channels of the input.
        width: channels of each layer.
        c_out: channels of the aggregated output.
        layers: layers in the chain (n).
        gate: whether eSE follows the aggregation (v2).
        residual: whether the input is added to the output; there is no ReLU after the sum.
        options: how the layers and the aggregation are made.
    """

    def __init__(
        self,
        c_in: int,
        width: int,
        c_out: int,
        layers: int = 5,
        *,
        gate: bool = False,
        residual: bool = False,
        options: OSAOptions | None = None,
    ) -> None:
        super().__init__()
        how = options or OSAOptions()
        self.residual = residual
        reduced = how.depthwise and c_in != width
        self.reduce = ConvNorm(c_in, width, 1) if reduced else None
        reads = [width if reduced else c_in, *[width] * (layers - 1)]
        self.layers = nn.ModuleList(_layer(read, width, how) for read in reads)
        self.aggregate = _aggregation(c_in + layers * width, c_out, how)
        self.gate = Gate(c_out) if gate else None

    def maps(self, x: Tensor) -> Tensor:
        """Returns what is aggregated: the input, then each layer's output, `c_in + layers * width` channels."""
        maps = [x]
        y = x if self.reduce is None else self.reduce(x)
        for layer in self.layers:
            y = layer(y)
            maps.append(y)
        return torch.cat(maps, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Takes `[batch, c_in, height, width]` and returns `[batch, c_out, height, width]`."""
        out: Tensor = self.aggregate(self.maps(x))
        if self.gate is not None:
            out = self.gate(out)
        return out + x if self.residual else out


def _layer(c_in: int, width: int, how: OSAOptions) -> nn.Module:
    if how.light:
        return nn.Sequential(
            ConvNorm(c_in, width, 1, act=False),
            ConvNorm(width, width, how.kernel, groups=width, affine=how.affine),
        )
    return ConvNorm(c_in, width, how.kernel, affine=how.affine, depthwise=how.depthwise)


def _aggregation(c_in: int, c_out: int, how: OSAOptions) -> nn.Sequential:
    widths = [c_in, c_out // 2, c_out] if how.aggregation == "two" else [c_in, c_out]
    pairs = pairwise(widths)
    return nn.Sequential(*(ConvNorm(read, written, 1, affine=how.affine) for read, written in pairs))
