"""Converts GGUF's blocks of quantized weights to `QuantizedWeight`.

Q4_0, Q4_1, Q5_0 and Q8_0 have groups of 32 with float16 scales, as `QuantizedWeight` has, and stay exact. Q4_K's scales
are products of a float16 and 6 bits; they are rounded to float16, an error below 1 % of a quantization step. Q5_1, Q5_K
and Q6_K are rounded to q8, whose step is the largest weight of a group / 127.
"""

from __future__ import annotations

import gguf
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from outlay.models.quantized import GROUP, QuantizedWeight, quantize

EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q8_0")


def quantized_blocks(kind: str, blocks: Tensor, columns: int) -> QuantizedWeight:
    """Returns the matrix that blocks hold.

    Args:
        kind: GGUF's name of the format.
        blocks: uint8 [count, bytes of a block].
        columns: the matrix's columns.
    """
    if kind not in _READERS:
        floats = gguf.quants.dequantize(blocks.numpy(), GGMLQuantizationType[kind])
        return quantize(torch.from_numpy(floats).reshape(-1, columns), "q8")
    q, scales, mins = _READERS[kind](blocks)
    groups = columns // GROUP
    q = q.reshape(-1, columns)
    scales, mins = scales.reshape(-1, groups), mins.reshape(-1, groups) if mins is not None else None
    return QuantizedWeight("q8" if mins is None else "q4", q, scales, mins)


Parts = tuple[Tensor, Tensor, Tensor | None]


def _half(data: Tensor) -> Tensor:
    return data.contiguous().view(torch.float16)


def _nibbles(data: Tensor) -> Tensor:
    """Splits bytes into their low halves, then their high halves: [count, n] -> [count, 2 n]."""
    return torch.cat((data & 15, data >> 4), dim=1)


def _fifth_bits(data: Tensor) -> Tensor:
    """Splits 4 bytes into 32 bits, each as 0 or 16: [count, 4] -> [count, 32]."""
    return ((data.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(1) << 4


def _q4_0(blocks: Tensor) -> Parts:
    scales = _half(blocks[:, :2])
    return _nibbles(blocks[:, 2:]), scales, scales * -8


def _q4_1(blocks: Tensor) -> Parts:
    return _nibbles(blocks[:, 4:]), _half(blocks[:, :2]), _half(blocks[:, 2:4])


def _q5_0(blocks: Tensor) -> Parts:
    q = (_nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])).to(torch.int8) - 16
    return q, _half(blocks[:, :2]), None


def _q8_0(blocks: Tensor) -> Parts:
    return blocks[:, 2:].contiguous().view(torch.int8), _half(blocks[:, :2]), None


def _q4_k(blocks: Tensor) -> Parts:
    scale, minimum = _half(blocks[:, :2]).float(), _half(blocks[:, 2:4]).float()
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((low & 63, (high & 15) | ((low >> 2) & 48)), dim=1)
    mins = torch.cat((middle & 63, (high >> 4) | ((middle >> 2) & 48)), dim=1)
    q = _nibbles(blocks[:, 16:].reshape(-1, GROUP))
    return q, (scale * scales).half(), (minimum * mins).neg().half()


_READERS = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q8_0": _q8_0, "Q4_K": _q4_k}
