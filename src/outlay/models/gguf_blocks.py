"""Converts GGUF's blocks of quantized weights to `QuantizedWeight`.

Q4_0, Q4_1, Q5_0, Q8_0 and IQ4_NL have groups of 32 with float16 scales, as `QuantizedWeight` has, and stay exact, as
MXFP4 does, whose scales are powers of two. Q4_K's scales are products of a float16 and 6 bits; they are rounded to
float16, an error below 1 % of a quantization step. TQ1_0, TQ2_0 and IQ1_S have three values in a group and are held in
q4, their scales rounded to float16. All others are rounded to q8, whose step is the largest weight of a group / 127.
"""

from __future__ import annotations

import gguf
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from outlay.models.quantized import GROUP, QuantizedWeight, quantize

EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q8_0", "IQ4_NL")
# GGUF's formats by the kind in which they are held.
HELD = {
    "q4": ("Q4_0", "Q4_1", "Q4_K", "TQ1_0", "TQ2_0", "IQ1_S"),
    "q8": (
        *("Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q5_K", "Q6_K", "MXFP4", "NVFP4", "IQ1_M", "IQ2_XXS", "IQ2_XS"),
        *("IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    ),
}
_TERNARY = ("TQ1_0", "TQ2_0", "IQ1_S")
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # in halves


def quantized_blocks(kind: str, blocks: Tensor, columns: int) -> QuantizedWeight:
    """Returns the matrix that blocks hold.

    Args:
        kind: GGUF's name of the format.
        blocks: uint8 [count, bytes of a block].
        columns: the matrix's columns.
    """
    if kind not in _READERS:
        floats = torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), GGMLQuantizationType[kind]))
        return rounded(kind, floats.reshape(-1, columns))
    q, scales, mins = _READERS[kind](blocks)
    groups = columns // GROUP
    q = q.reshape(-1, columns)
    scales, mins = scales.reshape(-1, groups), mins.reshape(-1, groups) if mins is not None else None
    return QuantizedWeight("q8" if mins is None else "q4", q, scales, mins)


def rounded(kind: str, weight: Tensor) -> QuantizedWeight:
    """Returns a matrix of floats, the values of a GGUF format that is not read block by block, as it is held."""
    return three_values(weight) if kind in _TERNARY else quantize(weight, "q8")


def three_values(weight: Tensor) -> QuantizedWeight:
    """Returns a float matrix [n, k] in q4 of which each group of 32 columns holds at most three equidistant values."""
    groups = weight.float().unflatten(-1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    middle = (low + high) / 2
    q = (groups >= middle[..., None]).to(torch.uint8) + (groups > middle[..., None])
    return QuantizedWeight("q4", q.flatten(-2), ((high - low) / 2).half(), low.half())


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


def _coded(nibbles: Tensor, values: tuple[int, ...]) -> Tensor:
    """Returns the value for which each number in 0..15 stands, int8."""
    return torch.tensor(values, dtype=torch.int8)[nibbles.int()]


def _iq4_nl(blocks: Tensor) -> Parts:
    return _coded(_nibbles(blocks[:, 2:]), _IQ4), _half(blocks[:, :2]), None


def _mxfp4(blocks: Tensor) -> Parts:
    # Below 2^-24 or above 2^15 float16 has no such scale; weights are not as small or large as that.
    exponents = blocks[:, :1].int().clamp(104, 143) - 128
    return _coded(_nibbles(blocks[:, 1:]), _FP4), torch.ldexp(torch.ones(exponents.shape), exponents).half(), None


_READERS = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q8_0": _q8_0, "Q4_K": _q4_k} | {
    "IQ4_NL": _iq4_nl,
    "MXFP4": _mxfp4,
}
