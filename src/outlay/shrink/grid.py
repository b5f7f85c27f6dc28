"""Uniform grids of integers: a scale and a zero point for each group of inputs of an output channel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from outlay.errors import UsageError


class Grid(NamedTuple):
    """The grids of some groups, as GPTQ's form stores them."""

    scales: Tensor
    """Float32 [out, groups], each exactly a float16."""
    zeros: Tensor
    """Float32 [out, groups], from 1 to 2^bits - 1."""

    @staticmethod
    def of(groups: Tensor, bits: int, symmetric: bool) -> Grid:
        """Returns the grids that span groups of weights from their least to their largest.

        Args:
            groups: Float32 [out, groups, size].
            bits: Bits of an integer.
            symmetric: Whether the zero point is in the middle.
        """
        levels = 2**bits - 1
        if symmetric:
            scales = _half(2 * groups.abs().amax(-1) / levels)
            return Grid(scales, torch.full_like(scales, (levels + 1) // 2))
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scales = _half((high - low) / levels)
        return Grid(scales, (-low / scales).round().clamp(1, levels))

    def codes(self, weight: Tensor, bits: int) -> Tensor:
        """Returns the nearest integers, float32, to weights of the shape of the grids or that broadcasts to it."""
        return (weight / self.scales + self.zeros).round().clamp(0, 2**bits - 1)

    def values(self, codes: Tensor) -> Tensor:
        """Returns the weights that integers stand for."""
        return (codes - self.zeros) * self.scales


def rounded(weight: Tensor, bits: int, group: int, symmetric: bool) -> tuple[Grid, Tensor, Tensor]:
    """Rounds a matrix to the nearest values of its groups' grids.

    Args:
        weight: Float32 [out, in].
        bits: Bits of an integer.
        group: Inputs of a group.
        symmetric: Whether the zero points are in the middle.

    Returns:
        The grids, the integers and what they stand for, each float32 [out, in].
    """
    groups = weight.unflatten(1, (-1, group))
    grid = Grid.of(groups, bits, symmetric)
    each = Grid(grid.scales[:, :, None], grid.zeros[:, :, None])
    codes = each.codes(groups, bits)
    return grid, codes.flatten(1), each.values(codes).flatten(1)


def _half(scales: Tensor) -> Tensor:
    scales = scales.half().float()
    return torch.where(scales == 0, 1.0, scales)


def check_group(inputs: int, group: int, name: str) -> None:
    """Raises `UsageError` where groups don't divide a layer's inputs."""
    if inputs % group:
        fitting = next(size for size in range(min(group, inputs), 0, -1) if inputs % size == 0)
        raise UsageError(f"group={group} doesn't divide the {inputs} inputs of {name}; group={fitting} does")
