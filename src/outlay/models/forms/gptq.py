"""GPTQ's public form: integers of 2, 3, 4 or 8 bits, with a half scale and a zero point for each group of inputs.

`qweight` int32 [in * bits / 32, out] holds each output channel's integers as one stream of bits, the lowest first;
`qzeros` int32 [groups, out * bits / 32] the zero points, less 1 in the first version of the form (`checkpoint_format`
"gptq"); `scales` float16 [groups, out]; `g_idx` int32 [in] the group of each input. w = scale * (q - zero).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from outlay.errors import UsageError
from outlay.kernels.bits import pack_bits, to_bytes, to_words, unpack_bits
from outlay.models.forms.form import Form, Tensors
from outlay.models.quantized import GROUP, QuantizedWeight, quantize
from outlay.models.stored import StoredMatrix

BITS = (2, 3, 4, 8)
"""The bits that the form knows."""


@dataclass(frozen=True)
class GptqMatrix(StoredMatrix):
    """A matrix [n, k] in GPTQ's form, unpacked."""

    q: Tensor
    """uint8 [n, k]."""
    scales: Tensor
    """float16 [n, groups]."""
    zeros: Tensor
    """int16 [n, groups]."""
    groups: Tensor
    """int64 [k]: the group of each input."""
    bits: int
    """Bits of an integer."""

    @property
    def shape(self) -> tuple[int, int]:
        """[n, k]"""
        return self.q.shape[0], self.q.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix in its file."""
        integers = (self.q.numel() + self.zeros.numel()) * self.bits // 8
        return integers + 2 * self.scales.numel() + 4 * self.groups.numel()

    @property
    def format(self) -> str:
        """int4 or int8; bfloat16 where the inputs don't divide into groups of 32."""
        if self.shape[1] % GROUP:
            return "bfloat16"
        return "int4" if self.bits <= 4 and self._aligned else "int8"

    @property
    def _aligned(self) -> bool:
        """Whether 32 inputs that follow each other are always of one group."""
        blocks = self.groups.view(-1, GROUP)
        return bool((blocks == blocks[:, :1]).all())

    def rows(self, index: Tensor | None) -> Tensor:
        """Returns the rows `index` (None: all) in float32."""
        part = self if index is None else self.take(index)
        centred = part.q.float() - part.zeros.float()[:, part.groups]
        return centred.mul_(part.scales.float()[:, part.groups])

    def take(self, index: Tensor) -> GptqMatrix:
        """Returns the rows `index` in the same form."""
        return replace(self, q=self.q[index], scales=self.scales[index], zeros=self.zeros[index])

    def plain(self) -> QuantizedWeight:
        """Returns the matrix in groups of 32.

        To 4 bits in q4, whose minimum -scale * zero is rounded to float16; else in q8, exactly where 8 bits are
        symmetric.
        """
        if self.format == "int4":
            of_block = self.groups.view(-1, GROUP)[:, 0]
            scales = self.scales[:, of_block]
            return QuantizedWeight("q4", self.q, scales, (-scales.float() * self.zeros[:, of_block].float()).half())
        if self.bits == 8 and self._aligned and bool((self.zeros == 128).all()):
            of_block = self.groups.view(-1, GROUP)[:, 0]
            return QuantizedWeight("q8", (self.q.int() - 128).to(torch.int8), self.scales[:, of_block])
        return quantize(self.dequantize(), "q8")


class GptqForm(Form):
    """Reads GPTQ's form. Bits and groups are read off each module's tensors, so that they may differ."""

    mark = "qweight"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._bits, self._group = int(config.get("bits", 4)), int(config.get("group_size", 128))
        self._offset = 0 if config.get("checkpoint_format") == "gptq_v2" else 1

    def shape(self, module: str, tensors: Tensors) -> tuple[int, int]:
        """Returns [out, in]."""
        words, inputs = tensors.shape(f"{module}.qweight"), tensors.shape(f"{module}.g_idx")
        assert words is not None
        return words[1], inputs[0] if inputs is not None else words[0] * 32 // self._bits

    def matrix(self, module: str, tensors: Tensors) -> GptqMatrix:
        """Returns a module's matrix."""
        n, k = self.shape(module, tensors)
        words, scales = self.tensor(module, "qweight", tensors), self.tensor(module, "scales", tensors)
        bits = words.shape[0] * 32 // k
        if bits not in BITS or words.shape[0] * 32 != bits * k:
            raise UsageError(
                f"{module}.qweight has {words.shape[0]} rows, which {k} inputs don't fill in any of {BITS}"
            )
        if scales.dim() != 2 or scales.shape[1] != n or not bool(scales.isfinite().all()):
            raise UsageError(f"{module}.scales should hold finite scales [groups, {n}], not {list(scales.shape)}")
        if tensors.shape(f"{module}.g_idx") is not None:
            groups = tensors.tensor(f"{module}.g_idx").long()
        else:
            groups = torch.arange(k) // (self._group if self._group > 0 else k)
        if not 0 <= int(groups.min()) <= int(groups.max()) < len(scales):
            raise UsageError(f"{module}.g_idx names a group that {module}.scales lacks: it has {len(scales)}")
        zeros = unpack_bits(to_bytes(self.tensor(module, "qzeros", tensors)), bits, n) + self._offset
        q = unpack_bits(to_bytes(words.T.contiguous()), bits, k).to(torch.uint8)
        return GptqMatrix(q, scales.T.contiguous().half(), zeros.T.contiguous().short(), groups, bits)


def gptq_tensors(q: Tensor, scales: Tensor, zeros: Tensor, groups: Tensor, bits: int) -> dict[str, Tensor]:
    """Returns the tensors of a module in the first version of the form.

    Args:
        q: int64 [out, in], each from 0 to 2^bits - 1.
        scales: float [out, groups].
        zeros: int64 [out, groups], from 1 to 2^bits, since the form stores them less 1.
        groups: int64 [in], the group of each input.
        bits: one of `BITS`.

    Raises:
        UsageError: Where the form has no place for a layer of this shape.
    """
    for name, size in (("outputs", q.shape[0]), ("inputs", q.shape[1])):
        if size * bits % 32:
            raise UsageError(f"{size} {name} of {bits} bits don't fill whole words of GPTQ's form; take 8 bits")
    return {
        "qweight": to_words(pack_bits(q, bits)).T.contiguous(),
        "qzeros": to_words(pack_bits((zeros - 1).T.contiguous(), bits)),
        "scales": scales.T.contiguous().half(),
        "g_idx": groups.int(),
    }
