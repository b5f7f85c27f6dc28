"""Sparse weights as a mask and the values that it keeps, in the layout of the native kernels (see native/abi.h)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_TILE, _GROUP = 16, 32  # channels of a tile, inputs of a group
_MASK = _TILE * _GROUP // 8  # bytes of a tile's group


def kept_of_a_block(mask: Tensor) -> int:
    """Returns how many weights every 16 channels keep of every 32 inputs.

    Args:
        mask: bool [m, k], k a multiple of 32.

    Raises:
        ValueError: Where blocks keep different numbers, or an odd one.
    """
    counts = mask.view(len(mask), -1, _GROUP).sum(2)
    if not mask.numel() or bool((counts != counts[0, 0]).any()):
        raise ValueError("expected a mask that keeps as many of every 32 inputs of every channel")
    return int(counts[0, 0]) * _TILE


def blocks_of(values: Tensor, mask: Tensor, by_input: bool) -> tuple[Tensor, Tensor]:
    """Returns masks and kept values tile by tile, in the order in which the plain formats have their weights.

    Args:
        values: [m, k].
        mask: bool [m, k], as `kept_of_a_block` wants it.
        by_input: Whether the order is that of bfloat16, [32][16]; else that of q8, [8][16][4].

    Returns:
        uint8 [tiles, groups, 64] and [tiles, groups, kept] in the dtype of the values.
    """
    kept = kept_of_a_block(mask)
    missing = -len(mask) % _TILE
    if missing:  # channels that nobody reads keep as many as others
        mask = torch.cat([mask, mask[:1].expand(missing, -1)])
        values = torch.cat([values, values.new_zeros(missing, values.shape[1])])
    mask, values = (_tiles(each, by_input) for each in (mask, values))
    packed = torch.from_numpy(np.packbits(mask.numpy(), axis=2, bitorder="little"))
    return packed, values[mask].view(*mask.shape[:2], kept)


def spread(masks: Tensor, kept: Tensor, by_input: bool) -> Tensor:
    """Returns the weights of tiles, zeros where none is kept: what `blocks_of` packed, as [tiles, 16, k]."""
    mask = torch.from_numpy(np.unpackbits(masks.numpy(), axis=2, bitorder="little")).bool()
    dense = torch.zeros(mask.shape, dtype=kept.dtype).masked_scatter_(mask, kept)
    if by_input:
        return dense.unflatten(2, (_GROUP, _TILE)).permute(0, 3, 1, 2).flatten(2)
    return dense.unflatten(2, (_GROUP // 4, _TILE, 4)).permute(0, 3, 1, 2, 4).flatten(2)


def _tiles(matrix: Tensor, by_input: bool) -> Tensor:
    """Returns a matrix [16 tiles, k] as [tiles, groups, 512]."""
    tiles = matrix.view(-1, _TILE, matrix.shape[1] // _GROUP, _GROUP)
    if by_input:
        return tiles.permute(0, 2, 3, 1).flatten(2)
    return tiles.unflatten(3, (_GROUP // 4, 4)).permute(0, 2, 3, 1, 4).flatten(2)
