"""Weights held as small integers in groups of 32: the exact form between a file's blocks and a kernel's packing.

`q4` is w = scale * q + min with q in 0..15; `q8` is w = scale * q with q in -128..127. Scales and minimums are float16,
as they are in GGUF files, so that Q4_0, Q4_1, Q5_0 and Q8_0 are represented exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from outlay import kernels
from outlay.models.stored import StoredMatrix

GROUP = 32
FORMAT_OF_KIND = {"q4": "int4", "q8": "int8"}


@dataclass(frozen=True)
class QuantizedWeight(StoredMatrix):
    """A matrix [n, k]: `q` uint8 (q4) or int8 (q8) [n, k], `scales` and, for q4, `mins` float16 [n, k / 32]."""

    kind: str
    q: Tensor
    scales: Tensor
    mins: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """[n, k]"""
        return self.q.shape[0], self.q.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix with q4 values packed two to a byte."""
        values = self.q.numel() // 2 if self.kind == "q4" else self.q.numel()
        return values + 2 * self.scales.numel() + (2 * self.mins.numel() if self.mins is not None else 0)

    @property
    def format(self) -> str:
        """ "int4" or "int8"."""
        return FORMAT_OF_KIND[self.kind]

    def plain(self) -> QuantizedWeight:
        """Returns the matrix itself."""
        return self

    def packed(self) -> kernels.PackedLinear:
        """Returns the matrix in the layout of the native kernels."""
        if self.mins is not None:
            return kernels.pack_q4(self.q, self.scales, self.mins)
        return kernels.pack_q8(self.q, self.scales)

    def rows(self, index: Tensor | None) -> Tensor:
        """Returns the rows `index` (None: all) in float32."""
        q, scales, mins = self.q, self.scales, self.mins
        if index is not None and index.ndim == 1 and q.device.type == "cpu" and kernels.available():
            return self.table.rows(index)
        if index is not None:
            q, scales = q[index], scales[index]
            mins = mins[index] if mins is not None else None
        groups = q.unflatten(-1, (-1, GROUP)).float().mul_(scales.float().unsqueeze(-1))
        if mins is not None:
            groups += mins.float().unsqueeze(-1)
        return groups.flatten(-2)

    @cached_property
    def table(self) -> kernels.Table:
        """The matrix in the form in which the native kernels look up rows."""
        return kernels.Table(self.q, self.scales, self.mins)

    def take(self, index: Tensor) -> QuantizedWeight:
        """Returns the rows `index`, still quantized."""
        mins = self.mins[index] if self.mins is not None else None
        return replace(self, q=self.q[index], scales=self.scales[index], mins=mins)

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """Returns the same matrix on `device`."""
        mins = self.mins.to(device) if self.mins is not None else None
        return replace(self, q=self.q.to(device), scales=self.scales.to(device), mins=mins)


def stack_rows(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Returns one matrix of the rows of all `parts`, which share a kind."""
    mins = [part.mins for part in parts if part.mins is not None]
    q, scales = torch.cat([part.q for part in parts]), torch.cat([part.scales for part in parts])
    return QuantizedWeight(parts[0].kind, q, scales, torch.cat(mins) if mins else None)


def quantize(weight: Tensor, kind: str) -> QuantizedWeight:
    """Rounds a float matrix [n, k] to the nearest `q4` or `q8` of each group of 32 columns."""
    groups = weight.float().contiguous().unflatten(-1, (-1, GROUP))
    if kind == "q4":
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scales, mins = ((high - low) / 15).half(), low.half()
        q = ((groups - mins.float()) / _nonzero(scales)).round_().clamp_(0, 15).to(torch.uint8)
        return QuantizedWeight("q4", q.flatten(-2), scales.squeeze(-1), mins.squeeze(-1))
    scales = (groups.abs().amax(-1, keepdim=True) / 127).half()
    q = (groups / _nonzero(scales)).round_().clamp_(-127, 127).to(torch.int8)
    return QuantizedWeight("q8", q.flatten(-2), scales.squeeze(-1))


def fits(weight: Tensor) -> bool:
    """Tells whether a matrix can be held in groups: its rows divide evenly, and float16 can hold its scales."""
    return weight.dim() == 2 and weight.shape[1] % GROUP == 0 and bool(weight.abs().amax() < 60000)


def _nonzero(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 1.0, scales.float())
