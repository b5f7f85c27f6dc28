"""Weights as entries of codebooks on an 8-bit grid, in the layout of the native kernels (see native/abi.h)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from outlay.kernels.bits import pack_bits, unpack_bits
from outlay.kernels.native import CodebookStruct, address

VECTORS = (2, 4, 8, 16)
"""The channels that a vector may have."""
_TILE, _GROUP, _HALF = 16, 32, 16  # channels of a tile, inputs of a group, inputs whose indices lie together
_LOOKED_UP = 64  # entries of a plane at least, which one instruction looks up


@dataclass(frozen=True)
class CodebookEntries:
    """The entries of a codebook, and of the residual codebook that is added to it, in steps.

    Raises:
        ValueError: Where the parts have another form.
    """

    entries: Tensor
    """int8 [k, v]."""
    residual: Tensor | None
    """int8 [k_res, v]; a sum with an entry is from -127 to 127."""
    step: float
    """What a step is, exactly a float16."""

    def __post_init__(self) -> None:
        if self.v not in VECTORS or self.entries.dtype != torch.int8:
            raise ValueError(f"expected int8 [k, v] with v in {VECTORS}, not {self.entries.dtype} [k, {self.v}]")
        if self.residual is not None and (self.residual.dtype != torch.int8 or self.residual.shape[1] != self.v):
            raise ValueError(f"expected a residual int8 [k_res, {self.v}], not {list(self.residual.shape)}")
        most = sum(int(each.int().abs().max()) for each in (self.entries, self.residual) if each is not None)
        if most > 127 or max(self.bits, self.residual_bits) > 16:
            raise ValueError(f"expected at most 65536 entries of at most 127 in sum, not {most}")
        if float(torch.tensor(self.step).half()) != self.step:
            raise ValueError(f"expected a step that is a float16, not {self.step}")

    @property
    def v(self) -> int:
        """Channels of a vector."""
        return self.entries.shape[1]

    @property
    def bits(self) -> int:
        """Bits of an index."""
        return max(1, (len(self.entries) - 1).bit_length())

    @property
    def residual_bits(self) -> int:
        """Bits of a residual index; 0 where there is no residual."""
        return 0 if self.residual is None else max(1, (len(self.residual) - 1).bit_length())

    @property
    def nbytes(self) -> int:
        """Bytes of the entries."""
        return self.entries.numel() + (0 if self.residual is None else self.residual.numel())

    @property
    def block(self) -> int:
        """Bytes of the indices of 16 channels for 32 inputs."""
        return _TILE * _GROUP // self.v * (self.bits + self.residual_bits) // 8

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        main = _filled(self.entries, 2**self.bits)
        planes = main.T.contiguous()
        if self.residual is None:
            return main, None, planes, None
        residual = _filled(self.residual, 2**self.residual_bits)
        return main, residual, planes, _filled(residual, max(len(residual), _LOOKED_UP)).T.contiguous()

    @cached_property
    def struct(self) -> CodebookStruct:
        """The entries as native calls take them."""
        main, residual, planes, residual_planes = self._tables
        return CodebookStruct(
            entries=address(main), residual=address(residual), planes=address(planes),
            residual_planes=address(residual_planes), v=self.v, bits=self.bits, residual_bits=self.residual_bits,
            step=int(torch.tensor(self.step).half().view(torch.int16)) & 0xFFFF,
        )  # fmt: skip

    def pack(self, index: Tensor, residual_index: Tensor | None) -> Tensor:
        """Packs indices.

        Args:
            index: int64 [vectors, k], the entry of each vector of channels that follow each other, for each input.
            residual_index: int64 [vectors, k], of the residual, if there is one.

        Returns:
            uint8 [tiles, groups, block].
        """
        streams = [pack_bits(self._in_order(index), self.bits)]
        if residual_index is not None:
            streams.append(pack_bits(self._in_order(residual_index), self.residual_bits))
        return torch.cat(streams, 1).view(-1, index.shape[1] // _GROUP, self.block)

    def _in_order(self, index: Tensor) -> Tensor:
        """Returns indices [vectors, k] in the kernels' order, [tiles * groups, 512 / v]."""
        vectors = _TILE // self.v
        missing = -len(index) % vectors
        padded = torch.cat([index, index.new_zeros(missing, index.shape[1])]) if missing else index
        parts = padded.view(-1, vectors, index.shape[1] // _GROUP, 2, _HALF)
        return parts.permute(0, 2, 3, 1, 4).reshape(-1, _TILE * _GROUP // self.v)

    def steps(self, blocks: Tensor) -> Tensor:
        """Returns the weights of tiles in steps: uint8 [tiles, groups, block] -> int8 [tiles, 16, k]."""
        n, groups = _TILE * _GROUP // self.v, blocks.shape[1]
        flat, border = blocks.flatten(0, 1), n * self.bits // 8
        found = self.entries[unpack_bits(flat[:, :border], self.bits, n)]
        if self.residual is not None:
            found = found + self.residual[unpack_bits(flat[:, border:], self.residual_bits, n)]
        parts = found.view(-1, groups, 2, _TILE // self.v, _HALF, self.v)
        return parts.permute(0, 3, 5, 1, 2, 4).reshape(-1, _TILE, groups * _GROUP)


def _filled(entries: Tensor, n: int) -> Tensor:
    """Fills entries up to n with zeros."""
    return torch.cat([entries, entries.new_zeros(n - len(entries), entries.shape[1])]).contiguous()
