"""Sparse weights in the public forms of compressed-tensors, `sparse-24-bitmask` and `sparse-bitmask`.

`compressed` holds the values that aren't zero, row by row (2:4: [out, in / 2], else [count]); `bitmask` uint8
[out, ceil(in / 8)] marks their places, the lowest bit first; `shape` int64 holds [out, in].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlay import kernels
from outlay.errors import UsageError
from outlay.models.forms.form import Form, Tensors
from outlay.models.quantized import GROUP, QuantizedWeight, quantize
from outlay.models.stored import StoredMatrix

PAIRED, FREE = "sparse-24-bitmask", "sparse-bitmask"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class BitmaskMatrix(StoredMatrix):
    """A sparse matrix of floats [n, k], expanded."""

    values: Tensor
    """[n, k], zeros where the mask has none."""
    mask: Tensor
    """bool [n, k]: what is stored."""
    stored: int
    """Bytes in the file."""

    @property
    def shape(self) -> tuple[int, int]:
        """[n, k]"""
        return self.values.shape[0], self.values.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix in its file."""
        return self.stored

    @property
    def format(self) -> str:
        """The values' own: bfloat16, float16 or float32."""
        return str(self.values.dtype).removeprefix("torch.")

    def rows(self, index: Tensor | None) -> Tensor:
        """Returns the rows `index` (None: all) in float32."""
        return (self.values if index is None else self.values[index]).float()

    def take(self, index: Tensor) -> BitmaskMatrix:
        """Returns the rows `index` in the same form."""
        stored = self.stored * len(index) // len(self.values)
        return replace(self, values=self.values[index], mask=self.mask[index], stored=stored)

    def plain(self) -> QuantizedWeight:
        """Returns the matrix rounded to q8."""
        return quantize(self.dequantize(), "q8")

    def packed_floats(self) -> kernels.PackedLinear | None:
        """Returns sparse bfloat16 for the native kernels, where all 32 inputs keep as many values."""
        if self.values.dtype != torch.bfloat16 or self.shape[1] % GROUP:
            return None
        try:
            sparse = kernels.pack_sparse(self.values, self.mask)
        except ValueError:
            return None
        return sparse if sparse.nbytes < 2 * self.values.numel() else None


class BitmaskForm(Form):
    """Reads both forms."""

    mark = "bitmask"

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Takes a `quantization_config`.

        Raises:
            UsageError: The values are quantized besides, or the form is another of compressed-tensors.
        """
        sparsity = config.get("sparsity_config") or {}
        form = str(sparsity.get("format") or config.get("format"))
        if form not in (PAIRED, FREE):
            raise UsageError(
                f"this model's weights are in the form {form!r} of compressed-tensors, which outlay does not read; it "
                f"reads {PAIRED} and {FREE} of floats"
            )
        if config.get("config_groups"):
            raise UsageError(
                "this model's sparse weights are quantized besides (config_groups of compressed-tensors), which outlay "
                "does not read; give it in floats"
            )
        self._paired = form == PAIRED

    def shape(self, module: str, tensors: Tensors) -> tuple[int, int]:
        """Returns [out, in]."""
        shape = self.tensor(module, "shape", tensors).flatten().tolist()
        if len(shape) != 2:
            raise UsageError(f"{module}.shape should hold two numbers, not {len(shape)}")
        return int(shape[0]), int(shape[1])

    def matrix(self, module: str, tensors: Tensors) -> BitmaskMatrix:
        """Returns a module's matrix."""
        n, k = self.shape(module, tensors)
        bits, values = self.tensor(module, "bitmask", tensors), self.tensor(module, "compressed", tensors)
        if bits.dtype != torch.uint8 or tuple(bits.shape) != (n, -(-k // 8)):
            raise UsageError(f"{module}.bitmask should hold bytes [{n}, {-(-k // 8)}], not {list(bits.shape)}")
        if values.dtype not in _FLOATS:
            raise UsageError(f"{module}.compressed holds {values.dtype}; outlay reads sparse weights of floats")
        mask = torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, count=k, bitorder="little")).bool()
        if int(mask.sum()) != values.numel():
            raise UsageError(f"{module} has {values.numel()} values for a bitmask of {int(mask.sum())}")
        if self._paired and (k % 4 or bool((mask.view(n, -1, 4).sum(2) != 2).any())):
            wrong = -1 if k % 4 else int((mask.view(n, -1, 4).sum(2) != 2).sum())
            raise UsageError(f"{module}.bitmask breaks 2:4 in {wrong if wrong >= 0 else 'the last'} groups")
        dense = torch.zeros(n, k, dtype=values.dtype).masked_scatter_(mask, values.flatten())
        return BitmaskMatrix(dense, mask, values.nbytes + bits.nbytes)
