"""Our form for N:M weights: the kept values of every M consecutive inputs, and their places.

`nm_values` holds the values row by row, each row's groups from left to right, a group's values by place: bfloat16
[out, in / M * N], int8 of the same shape, or bytes of two 4-bit integers each, the lower first, 8 added. `nm_places` is
a stream of ceil(log2 M) bits a value. `nm_scales` float16 [out, in / group] scales the integers. The bits of a matrix
are out in N / M (bits of a value + ceil(log2 M)) and those of the scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from outlay import kernels
from outlay.errors import UsageError
from outlay.kernels.bits import pack_stream, unpack_stream
from outlay.models.forms.form import Form, Tensors
from outlay.models.quantized import GROUP, QuantizedWeight, quantize
from outlay.models.stored import StoredMatrix

BITS = (4, 8, 16)
"""The bits that a kept value may have."""


@dataclass(frozen=True)
class NmCode:
    """How a matrix is held."""

    n: int
    """Values that are kept of a group."""
    m: int
    """Consecutive inputs of a group."""
    bits: int
    """Bits of a kept value: 16 (bfloat16), 8 or 4 (integers around 0)."""
    group: int
    """Inputs that share a scale, where values are integers."""

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m or self.bits not in BITS or self.group < 1:
            raise UsageError(
                "N:M weights keep 1 to M values of every M in 16, 8 or 4 bits, with scales for groups of 1 input or "
                f"more, not {self.n}:{self.m} in {self.bits} bits for groups of {self.group}"
            )

    @property
    def place_bits(self) -> int:
        """Bits of a place: ceil(log2 m)."""
        return (self.m - 1).bit_length()

    def kept(self, outputs: int, inputs: int) -> int:
        """Returns how many values a matrix keeps."""
        return outputs * inputs // self.m * self.n

    def file_bits(self, outputs: int, inputs: int) -> int:
        """Returns the bits of a matrix in its file, before streams are filled up to whole bytes."""
        scales = 0 if self.bits == 16 else 16 * outputs * inputs // self.group
        return self.kept(outputs, inputs) * (self.bits + self.place_bits) + scales


@dataclass(frozen=True)
class NmMatrix(StoredMatrix):
    """A matrix [n, k] of our form, expanded."""

    values: Tensor
    """[n, k]: bfloat16, or int8 to be scaled; 0 where nothing is kept."""
    mask: Tensor
    """bool [n, k]: what is kept."""
    scales: Tensor | None
    """float16 [n, k / group]; None where values are floats."""
    code: NmCode
    """How it is held."""

    @property
    def shape(self) -> tuple[int, int]:
        """[n, k]"""
        return self.values.shape[0], self.values.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix in its file."""
        return -(-self.code.file_bits(*self.shape) // 8)

    @property
    def format(self) -> str:
        """int4 or int8; bfloat16 where values are that, or scales aren't for multiples of 32 inputs."""
        return {4: "int4", 8: "int8"}[self.code.bits] if self._plain else "bfloat16"

    @property
    def _plain(self) -> bool:
        return self.scales is not None and self.code.group % GROUP == 0

    def rows(self, index: Tensor | None) -> Tensor:
        """Returns the rows `index` (None: all) in float32."""
        part = self if index is None else self.take(index)
        if part.scales is None:
            return part.values.float()
        return part.values.float() * part.scales.float().repeat_interleave(self.code.group, 1)

    def take(self, index: Tensor) -> NmMatrix:
        """Returns the rows `index` in the same form."""
        scales = None if self.scales is None else self.scales[index]
        return replace(self, values=self.values[index], mask=self.mask[index], scales=scales)

    def plain(self) -> QuantizedWeight:
        """Returns the matrix in groups of 32: exactly where its scales are for multiples of 32 inputs, else in q8."""
        if not self._plain or self.scales is None:
            return quantize(self.dequantize(), "q8")
        scales = self._scales_of_32()
        if self.code.bits == 8:
            return QuantizedWeight("q8", self.values, scales)
        return QuantizedWeight("q4", (self.values + 8).to(torch.uint8), scales, -8 * scales)

    def packed(self) -> kernels.PackedLinear:
        """Returns the matrix in the layout of the native kernels: sparse, where that is smaller."""
        if not self._plain or not self._spared:
            return super().packed()
        return kernels.pack_sparse(self.values, self.mask, self._scales_of_32(), self.code.bits)

    def packed_floats(self) -> kernels.PackedLinear | None:
        """Returns sparse bfloat16 for the native kernels, where that is smaller."""
        if self.scales is not None or not self._spared or self.shape[1] % GROUP:
            return None
        return kernels.pack_sparse(self.values, self.mask)

    @property
    def _spared(self) -> bool:
        """Whether a bit a weight and the kept values are less than all values, in groups that divide 32 inputs."""
        code = self.code
        return GROUP % code.m == 0 and code.n * code.bits + code.m < code.m * code.bits

    def _scales_of_32(self) -> Tensor:
        assert self.scales is not None
        return self.scales.repeat_interleave(self.code.group // GROUP, 1)


class NmForm(Form):
    """Reads our form of N:M weights."""

    mark = "nm_places"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._code = _code_of(config)
        self._own = {name: _code_of({**config, **each}) for name, each in config.get("config_for_layers", {}).items()}

    def shape(self, module: str, tensors: Tensors) -> tuple[int, int]:
        """Returns [out, in]."""
        code, values = self._own.get(module, self._code), tensors.shape(f"{module}.nm_values")
        if values is None or len(values) != 2:
            raise UsageError(f"the model's files lack the tensor {module}.nm_values")
        held = values[1] * 2 if code.bits == 4 else values[1]
        return values[0], held // code.n * code.m

    def matrix(self, module: str, tensors: Tensors) -> NmMatrix:
        """Returns a module's matrix.

        Raises:
            UsageError: Its tensors don't fit each other, or its places break the pattern.
        """
        code, (outputs, inputs) = self._own.get(module, self._code), self.shape(module, tensors)
        values = self.tensor(module, "nm_values", tensors)
        wanted = {16: torch.bfloat16, 8: torch.int8, 4: torch.uint8}[code.bits]
        if values.dtype != wanted:
            raise UsageError(f"{module}.nm_values is {values.dtype}, not {wanted}")
        if code.bits == 4:
            values = torch.stack((values & 15, values >> 4), -1).flatten(1).to(torch.int8) - 8
        kept, stream = code.kept(outputs, inputs), self.tensor(module, "nm_places", tensors)
        if values.numel() != kept or stream.numel() != -(-kept * code.place_bits // 8):
            raise UsageError(
                f"{module} has {values.numel()} values and {stream.numel()} bytes of places, which don't fit "
                f"{code.n}:{code.m} of [{outputs}, {inputs}]"
            )
        places = unpack_stream(stream, code.place_bits, kept).view(-1, code.n)
        wrong = int(((places >= code.m).any(1) | (places.diff(dim=1) <= 0).any(1)).sum())
        if wrong:
            raise UsageError(f"{module}.nm_places breaks {code.n}:{code.m} in {wrong} of {len(places)} groups")
        groups = values.new_zeros(len(places), code.m).scatter_(1, places, values.reshape(-1, code.n))
        mask = torch.zeros(groups.shape, dtype=torch.bool).scatter_(1, places, True).view(outputs, inputs)
        scales = self._scales(module, code, (outputs, inputs), tensors)
        return NmMatrix(groups.view(outputs, inputs), mask, scales, code)

    def _scales(self, module: str, code: NmCode, shape: tuple[int, int], tensors: Tensors) -> Tensor | None:
        if code.bits == 16:
            return None
        scales = self.tensor(module, "nm_scales", tensors)
        wanted = (shape[0], shape[1] // code.group)
        if scales.shape != wanted or not bool(scales.isfinite().all()):
            raise UsageError(f"{module}.nm_scales should hold finite scales {list(wanted)}, not {list(scales.shape)}")
        return scales.half()


def nm_tensors(values: Tensor, scales: Tensor | None, mask: Tensor, code: NmCode) -> dict[str, Tensor]:
    """Returns the tensors of a module.

    Args:
        values: [out, in]: floats, or the integers, int8.
        scales: float16 [out, in / group]; None for floats.
        mask: bool [out, in], n of every m set: what is kept.
        code: How it is held.
    """
    places = mask.view(-1, code.m).nonzero()[:, 1]
    kept = values[mask].view(len(values), -1)
    tensors = {"nm_places": pack_stream(places, code.place_bits)}
    if code.bits == 16:
        return {"nm_values": kept.bfloat16(), **tensors}
    assert scales is not None
    if code.bits == 4:
        if kept.shape[1] % 2:
            raise UsageError(f"{kept.shape[1]} kept values of a row don't fill whole bytes of 4 bits; take 8 bits")
        low, high = (kept + 8).to(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
        kept = low | high << 4
    return {"nm_values": kept, "nm_scales": scales.half(), **tensors}


def _code_of(config: Mapping[str, Any]) -> NmCode:
    names = ("n", "m", "bits", "group")
    missing = [name for name in names if name not in config]
    if missing:
        raise UsageError(f"the quantization_config of N:M weights lacks {missing[0]}")
    return NmCode(**{name: int(config[name]) for name in names})
