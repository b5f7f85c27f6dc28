"""Orthogonal rotations of a layer's inputs that need no storage: random signs, a Hadamard transform, a small DCT.

R = Q S with S = diag(+-1) and Q = kron(C_m, Had / sqrt(2^a)) for n = 2^a m with m odd, C_m the orthonormal DCT-II. It
costs a + m multiply-adds an input. The signs come from SHAKE-256 of the seed, so that they are the same everywhere.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """The rotation of n inputs that belongs to a seed."""

    n: int
    """Inputs."""
    seed: int
    """Which signs."""

    @property
    def power(self) -> int:
        """2^a, the largest power of two that divides n."""
        return self.n & -self.n

    @cached_property
    def signs(self) -> Tensor:
        """float32 [n], each 1 or -1."""
        stream = hashlib.shake_256(f"outlay rotation {self.seed}".encode()).digest(-(-self.n // 8))
        bits = np.unpackbits(np.frombuffer(stream, np.uint8), count=self.n, bitorder="little")
        return torch.from_numpy(1 - 2 * bits.astype(np.float32))

    @cached_property
    def dct(self) -> Tensor:
        """The orthonormal DCT-II of the odd factor, float64 [m, m]."""
        m = self.n // self.power
        rows, columns = torch.arange(m, dtype=torch.float64)[:, None], torch.arange(m, dtype=torch.float64)
        matrix = torch.cos(math.pi * (columns + 0.5) * rows / m) * math.sqrt(2 / m)
        matrix[0] /= math.sqrt(2)
        return matrix

    def __call__(self, x: Tensor) -> Tensor:
        """Rotates rows: x [..., n] -> R x, in the dtype of x."""
        parts = (x * self.signs.to(x.dtype)).unflatten(-1, (-1, self.power))
        return (self.dct.to(x.dtype) @ _hadamard(parts)).flatten(-2)

    def inverse(self, y: Tensor) -> Tensor:
        """Rotates rows back: y [..., n] -> R^T y."""
        parts = self.dct.T.to(y.dtype) @ y.unflatten(-1, (-1, self.power))
        return _hadamard(parts).flatten(-2) * self.signs.to(y.dtype)

    def of_moment(self, h: Tensor) -> Tensor:
        """Returns the second moments of rotated inputs, R H R^T, of those of the inputs, float64 [n, n]."""
        return self(self(h).T.contiguous())


def _hadamard(x: Tensor) -> Tensor:
    """Returns the orthonormal Walsh-Hadamard transform over the last dimension, a power of two."""
    size, n = 1, x.shape[-1]
    while size < n:
        pairs = x.unflatten(-1, (-1, 2, size))
        low, high = pairs.unbind(-2)
        x = torch.stack((low + high, low - high), -2).flatten(-3)
        size *= 2
    return x / math.sqrt(n)
