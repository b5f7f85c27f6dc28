"""Keys and values in few bits: channel-wise keys and channel-separable token-wise values (ZipVL, He et al. 2024; the
quantizer is that of ZipCache, by the same authors).

A block is asymmetric and uniform: x is held as the code round((x - z) / s) with s = (max - min) / (2^bits - 1) and
z = min. Minima and maxima are held in 16 bits, rounded outwards, so that no code is clipped and |x - x^| <= s / 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outlay.tree.cache import dequantize, quantize
from outlay.tree.stored import HeldKeys

BITS = (2, 4, 8, 16)
HELD = 16  # bits of a part that is held as the cache holds plain tokens
TINY = 1e-4  # the least scale of a channel, far above what 16 bits round to 0


def pack(codes: Tensor, bits: int) -> Tensor:
    """Packs codes into bytes, the first in the lowest bits; what a last byte lacks is 0.

    Args:
        codes: uint8, any shape, each below 2^bits.
        bits: 2, 4 or 8.

    Returns:
        uint8 [ceil(codes * bits / 8)].
    """
    flat, per = codes.flatten(), 8 // bits
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % per)).view(-1, per)
    packed = padded[:, 0].clone()
    for place in range(1, per):
        packed |= padded[:, place] << (bits * place)
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Returns the first `count` codes that `pack` packed, uint8 [count]."""
    if bits == 8:
        return packed[:count]
    mask = (1 << bits) - 1
    return torch.stack([(packed >> shift) & mask for shift in range(0, 8, bits)], 1).flatten()[:count]


@dataclass(frozen=True)
class Block:
    """Numbers that are quantized along one dimension of [heads, tokens, channels] together."""

    codes: Tensor
    """uint8, packed."""
    low: Tensor
    """float16, the least number of each group."""
    high: Tensor
    """float16, the largest."""
    bits: int
    shape: torch.Size

    @classmethod
    def of(cls, x: Tensor, bits: int, dims: tuple[int, ...]) -> Block:
        """Quantizes x; the numbers of a group differ in `dims` alone."""
        x = x.float()
        low, high = _rounded(x.amin(dims, keepdim=True), -1), _rounded(x.amax(dims, keepdim=True), 1)
        z, step = low.float(), _steps(low, high, bits)
        codes = ((x - z) / step).round().clamp(0, (1 << bits) - 1).to(torch.uint8)
        return cls(pack(codes, bits), low, high, bits, x.shape)

    @property
    def scale_bytes(self) -> int:
        """Bytes of minima and maxima."""
        return 2 * (self.low.numel() + self.high.numel())

    def read(self) -> Tensor:
        """Returns the numbers, float32."""
        codes = unpack(self.codes, self.bits, self.shape.numel()).view(self.shape)
        return codes.float().mul_(_steps(self.low, self.high, self.bits)).add_(self.low.float())


def _rounded(x: Tensor, direction: int) -> Tensor:
    """Rounds to float16, down or up."""
    near = x.half()
    beyond = torch.nextafter(near, torch.full_like(near, direction * torch.inf))
    return torch.where((near.float() - x) * direction < 0, beyond, near)


def _steps(low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Returns the distance of neighbouring codes, float32; 1 for numbers that are all the same."""
    step = (high.float() - low.float()) / ((1 << bits) - 1)
    return torch.where(step == 0, 1.0, step)


class _Positions:
    """Ascending positions, as a bit for each place of a segment."""

    def __init__(self, positions: Tensor, base: int, count: int) -> None:
        mask = np.zeros(count, dtype=np.bool_)
        mask[(positions - base).cpu().numpy()] = True
        self._base, self._device = base, positions.device
        self._bits: NDArray[np.uint8] = np.packbits(mask)

    @property
    def bytes(self) -> int:
        return self._bits.nbytes

    def read(self) -> Tensor:
        return torch.from_numpy(np.flatnonzero(np.unpackbits(self._bits)) + self._base).to(self._device)


class QuantizedPart:
    """Tokens of a layer in 2, 4 or 8 bits."""

    def __init__(self, held: HeldKeys, bits: int, base: int, count: int, *, separable: bool = True) -> None:
        """Quantizes keys and values.

        Args:
            held: The tokens.
            bits: 2, 4 or 8.
            base: Position of the segment's first token.
            count: The segment's tokens.
            separable: Whether values are divided by the root of each channel's largest magnitude first.
        """
        self.length = len(held.positions)
        self._positions = _Positions(held.positions, base, count)
        self._keys = Block.of(held.keys, bits, (1,))
        values, self._channels = held.values.float(), None
        if separable:
            largest = values.abs().amax(1, keepdim=True)
            self._channels = torch.where(largest > 0, largest.sqrt(), 1.0).clamp_min(TINY).half()
            values = values / self._channels.float()
        self._values = Block.of(values, bits, (0, 2))

    @property
    def payload(self) -> int:
        return self._keys.codes.numel() + self._values.codes.numel()

    @property
    def overhead(self) -> int:
        channels = 0 if self._channels is None else 2 * self._channels.numel()
        return self._keys.scale_bytes + self._values.scale_bytes + channels + self._positions.bytes

    def read(self, dtype: torch.dtype) -> HeldKeys:
        values = self._values.read()
        if self._channels is not None:
            values = values * self._channels.float()
        return HeldKeys(self._positions.read(), self._keys.read().to(dtype), values.to(dtype))


class PlainPart:
    """Tokens of a layer as the cache would hold them."""

    def __init__(self, held: HeldKeys, dtype: torch.dtype, group: int, base: int, count: int) -> None:
        """Copies keys and values.

        Args:
            held: The tokens.
            dtype: The cache's.
            group: Dimensions that share a scale in an int8 cache; 0 in others.
            base: Position of the segment's first token.
            count: The segment's tokens.
        """
        self.length = len(held.positions)
        self._positions = _Positions(held.positions, base, count)
        self._held: list[tuple[Tensor, Tensor | None]] = []
        for x in (held.keys, held.values):
            codes, scales = quantize(x, group) if group else (x, None)
            self._held.append((codes.to(dtype, copy=True).contiguous(), scales))

    @property
    def payload(self) -> int:
        return sum(x.nbytes for x, _ in self._held)

    @property
    def overhead(self) -> int:
        return self._positions.bytes + sum(scales.nbytes for _, scales in self._held if scales is not None)

    def read(self, dtype: torch.dtype) -> HeldKeys:
        keys, values = (x if scales is None else dequantize(x, scales) for x, scales in self._held)
        return HeldKeys(self._positions.read(), keys.to(dtype), values.to(dtype))


def part_bytes(tokens: int, count: int, bits: int, heads: int, head_dim: int, *, separable: bool = True) -> int:
    """Returns the bytes of `tokens` tokens of a layer in 2, 4 or 8 bits: codes, scales and positions.

    Args:
        tokens: Tokens of the part; none take nothing.
        count: Tokens of the segment.
        bits: 2, 4 or 8.
        heads: KV heads.
        head_dim: Dimensions of each.
        separable: Whether values have a scale for each channel.
    """
    if not tokens:
        return 0
    width = heads * head_dim
    codes = 2 * -(-tokens * width * bits // 8)
    return codes + 4 * width + 4 * tokens + (2 * width if separable else 0) + -(-count // 8)
