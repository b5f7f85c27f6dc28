"""A matrix in the form of its file: what every stored form of weights offers to those that load and multiply it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outlay import kernels

if TYPE_CHECKING:
    from outlay.models.quantized import QuantizedWeight


class StoredMatrix(ABC):
    """A matrix [n, k] of a linear layer as a file holds it."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """[n, k]"""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the matrix in its file."""

    @property
    @abstractmethod
    def format(self) -> str:
        """The format of `linear.FORMATS` in which it is multiplied where nothing else is asked for."""

    @abstractmethod
    def rows(self, index: Tensor | None) -> Tensor:
        """Returns rows in float32.

        Args:
            index: int64 [r]; None: all rows.

        Returns:
            Float32 [r or n, k].
        """

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the matrix as floats, [n, k]."""
        return self.rows(None).to(dtype)

    @abstractmethod
    def take(self, index: Tensor) -> StoredMatrix:
        """Returns the rows `index`, int64 [r], in the same form."""

    @abstractmethod
    def plain(self) -> QuantizedWeight:
        """Returns the nearest matrix in plain groups of 32, which every product here takes."""

    def packed(self) -> kernels.PackedLinear:
        """Returns the matrix in the layout of the native kernels."""
        return self.plain().packed()

    def packed_floats(self) -> kernels.PackedLinear | None:
        """Returns the matrix in bfloat16 for the native kernels, in less than two bytes a weight; None: it can't be."""
        return None
