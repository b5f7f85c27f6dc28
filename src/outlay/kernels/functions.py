"""Single operations of the native kernels on float32 tensors, and tables of quantized rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from outlay.kernels.native import TableStruct, address, check, library

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "quick_gelu": 4}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns x / sqrt(mean(x^2) + eps) * weight, of x [rows, n] and weight [n]."""
    x, weight, out = x.contiguous(), weight.contiguous(), torch.empty(x.shape)
    check(library().outlay_rms_norm(x.data_ptr(), weight.data_ptr(), x.shape[0], x.shape[1], eps, out.data_ptr()))
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Returns (x - mean) / sqrt(variance + eps) * weight + bias, of x [rows, n], weight and bias [n]."""
    x, weight, bias, out = x.contiguous(), weight.contiguous(), bias.contiguous(), torch.empty(x.shape)
    rows, n = x.shape
    check(library().outlay_layer_norm(x.data_ptr(), weight.data_ptr(), bias.data_ptr(), rows, n, eps, out.data_ptr()))
    return out


def activate(kind: str, gate: Tensor, up: Tensor | None = None) -> Tensor:
    """Returns act(gate) * up, or act(gate) where there is no up, of any shape; `kind` is one of `ACTIVATIONS`."""
    gate, out = gate.contiguous(), torch.empty(gate.shape)
    up = up if up is None else up.contiguous()
    check(library().outlay_activate(ACTIVATIONS[kind], gate.data_ptr(), address(up), gate.numel(), out.data_ptr()))
    return out


def exp(x: Tensor) -> Tensor:
    """Returns e^x with a relative error below 2e-7; 0 below -87.3."""
    x, out = x.contiguous(), torch.empty(x.shape)
    check(library().outlay_exp(x.data_ptr(), x.numel(), out.data_ptr()))
    return out


def nearest(vectors: Tensor, points: Tensor) -> Tensor:
    """Returns the nearest of points for each vector, the first of equals: int64 [n].

    Args:
        vectors: float32 [n, v].
        points: float32 [k, v].
    """
    vectors, missing = vectors.contiguous(), -len(points) % 16
    planes = torch.cat([points, points.new_zeros(missing, points.shape[1])]).T.contiguous()
    halves = torch.cat([points.square().sum(1) / 2, points.new_full((missing,), torch.inf)])
    (n, v), out = vectors.shape, torch.empty(len(vectors), dtype=torch.int64)
    check(
        library().outlay_nearest(
            vectors.data_ptr(), n, v, planes.data_ptr(), halves.data_ptr(), len(halves), out.data_ptr()
        )
    )
    return out


@dataclass(frozen=True)
class Table:
    """A matrix of quantized rows: q * scales + mins, with a scale and a minimum for each group of 32 columns.

    Raises:
        ValueError: Where the parts have another form.
    """

    q: Tensor
    """[m, k], int8 or, where there are `mins`, uint8."""

    scales: Tensor
    """float16 [m, k / 32]"""

    mins: Tensor | None = None
    """float16 [m, k / 32]; None: zeros."""

    def __post_init__(self) -> None:
        q, scales, mins = self.q, self.scales, self.mins
        m, k = q.shape
        expected = (torch.int8 if mins is None else torch.uint8, (m, k // 32))
        if (q.dtype, scales.shape) != expected or k % 32 or not q.is_contiguous() or not scales.is_contiguous():
            raise ValueError(
                f"expected contiguous {expected[0]} [m, k] with scales [m, k / 32], not {q.dtype} {[m, k]}"
            )
        if mins is not None and (mins.shape != scales.shape or mins.dtype != scales.dtype or not mins.is_contiguous()):
            raise ValueError("mins are held as scales are")
        if scales.dtype != torch.float16:
            raise ValueError(f"expected float16 scales, not {scales.dtype}")

    @cached_property
    def struct(self) -> TableStruct:
        """The table as native calls take it."""
        return TableStruct(
            q=self.q.data_ptr(), scales=self.scales.data_ptr(), mins=address(self.mins), k=self.q.shape[1]
        )

    def rows(self, index: Tensor) -> Tensor:
        """Returns rows of the matrix.

        Args:
            index: int64 [n].

        Returns:
            float32 [n, k].

        Raises:
            ValueError: Where there is no such row.
        """
        if index.dtype != torch.int64 or index.ndim != 1 or not index.is_contiguous():
            raise ValueError(f"expected int64 [n] rows, not {index.dtype} {list(index.shape)}")
        listed, (m, k) = index.tolist(), self.q.shape
        if listed and not 0 <= min(listed) <= max(listed) < m:
            raise ValueError(f"expected rows in 0..{m - 1}, not {min(listed)}..{max(listed)}")
        out = torch.empty(len(listed), k)
        library().outlay_rows(self.struct, index.data_ptr(), len(listed), out.data_ptr())
        return out
