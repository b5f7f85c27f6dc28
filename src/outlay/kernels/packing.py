"""Weights of linear layers in the layouts of the native kernels (see native/abi.h), and the layer that runs on them."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Array, pointer
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from outlay.kernels import sparse
from outlay.kernels.codebook import CodebookEntries
from outlay.kernels.memory import weights
from outlay.kernels.native import LinearStruct, StackStruct, address, check, library

_FORMATS = {
    "q4": 0, "q8": 1, "bf16": 2, "f32": 3, "codebook": 4, "sparse_q8": 5, "sparse_q4": 6, "sparse_bf16": 7
}  # fmt: skip
_TILE = 16  # output channels that are interleaved
_GROUP = 32  # weights that share a scale
_BEHIND = 64  # bytes behind packed weights that may be read


@dataclass(frozen=True)
class PackedPart:
    """The weights of consecutive output channels, in one of the kernels' formats."""

    data: Tensor
    """The weights, uint8, in the layout of the format."""

    format: str
    """"q4", "q8", "bf16" or "f32"; packed: "codebook", "sparse_q8", "sparse_q4" or "sparse_bf16"."""

    out_features: int

    in_features: int

    kept: int = 0
    """Of a tile's weights for 32 inputs, in the sparse formats."""

    codebook: CodebookEntries | None = None
    """Of the format "codebook"."""

    @property
    def is_packed(self) -> bool:
        """Tells whether tiles are unpacked before they are multiplied."""
        return _FORMATS[self.format] >= _FORMATS["codebook"]

    @property
    def nbytes(self) -> int:
        """The size of the weights, which one pass reads."""
        if not self.is_packed:
            return self.data.numel()
        return self.data.numel() - _BEHIND + (0 if self.codebook is None else self.codebook.nbytes)

    @cached_property
    def struct(self) -> LinearStruct:
        """The part as native calls take it."""
        return LinearStruct(
            weights=self.data.data_ptr(),
            format=_FORMATS[self.format],
            m=self.out_features,
            k=self.in_features,
            kept=self.kept,
            codebook=None if self.codebook is None else pointer(self.codebook.struct),
        )

    def rows(self, index: Tensor) -> Tensor:
        """Returns the weights of the output channels `index`, int64 [n], as float32 [n, in_features]."""
        tile, place = index // _TILE, index % _TILE
        groups = self.in_features // _GROUP
        if self.is_packed:
            return self._unpacked(tile, groups)[torch.arange(len(tile)), place]
        if self.format == "q4":
            blocks = self.data.view(-1, groups, 320)
            scales, minima = (blocks[..., i : i + 32].view(torch.float16)[tile, :, place].float() for i in (0, 32))
            packed = blocks[..., 64:].unflatten(2, (4, _TILE, 4))[tile, :, :, place]
            q = torch.stack([packed & 15, packed >> 4], dim=2).flatten(2)
            return (scales[..., None] * q + minima[..., None]).flatten(1)
        if self.format == "q8":
            blocks = self.data.view(-1, groups, 544)
            scales = blocks[..., :32].view(torch.float16)[tile, :, place].float()
            q = blocks[..., 32:].view(torch.int8).unflatten(2, (8, _TILE, 4))[tile, :, :, place].flatten(2)
            return (scales[..., None] * q).flatten(1)
        dtype = torch.bfloat16 if self.format == "bf16" else torch.float32
        return self.data.view(dtype).view(-1, self.in_features, _TILE)[tile, :, place].float()

    def _unpacked(self, tile: Tensor, groups: int) -> Tensor:
        """Returns the weights of packed tiles, float32 [n, 16, in_features]."""
        blocks = self.data[:-_BEHIND].view(-(-self.out_features // _TILE), groups, -1)[tile]
        if self.codebook is not None:
            return self.codebook.steps(blocks).float() * self.codebook.step
        if self.format == "sparse_bf16":
            return sparse.spread(blocks[..., :64], blocks[..., 64:].contiguous().view(torch.bfloat16), True).float()
        scales = blocks[..., :32].contiguous().view(torch.float16).float().transpose(1, 2)
        kept = blocks[..., 96:]
        if self.format == "sparse_q4":
            kept = torch.stack((kept & 15, kept >> 4), -1).flatten(2).to(torch.int8) - 8
        values = sparse.spread(blocks[..., 32:96], kept.contiguous().view(torch.int8), False)
        return (values.unflatten(2, (-1, _GROUP)) * scales[..., None]).flatten(2)


class PackedLinear:
    """A linear layer of one or more parts that read the same input, their output channels one after the other.

    A row's result has the same bits however many rows are computed with it, in any order, on any number of threads.
    """

    def __init__(self, parts: Sequence[PackedPart]) -> None:
        """Makes a layer of its parts.

        Raises:
            ValueError: Where the parts read inputs of different sizes, or there are none.
        """
        self.parts = tuple(parts)
        sizes = {part.in_features for part in parts}
        if len(sizes) != 1:
            raise ValueError(f"expected parts that read one input, not inputs of sizes {sorted(sizes)}")
        self.in_features = sizes.pop()
        self.out_features = sum(part.out_features for part in parts)

    @property
    def nbytes(self) -> int:
        """The size of the weights, which one pass reads."""
        return sum(part.nbytes for part in self.parts)

    @cached_property
    def _parts(self) -> Array[LinearStruct]:
        return (LinearStruct * len(self.parts))(*(part.struct for part in self.parts))

    def struct(self, bias: Tensor | None = None) -> StackStruct:
        """Returns the layer as native calls take it, with a bias, contiguous float32 [out_features]."""
        return StackStruct(
            parts=self._parts,
            n_parts=len(self.parts),
            m=self.out_features,
            k=self.in_features,
            bias=address(bias),
        )

    def __call__(self, x: Tensor, bias: Tensor | None = None, add_to: Tensor | None = None) -> Tensor:
        """Applies the layer.

        Args:
            x: float32 [n, in_features].
            bias: float32 [out_features], added to each row.
            add_to: float32 [n, out_features], to which the result is added in place.

        Returns:
            float32 [n, out_features]; `add_to`, if given.

        Raises:
            ValueError: Where a shape or dtype is another.
        """
        if x.dtype != torch.float32 or x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"expected float32 [n, {self.in_features}], not {x.dtype} {list(x.shape)}")
        shape = (x.shape[0], self.out_features)
        x = x.contiguous()
        out = torch.empty(shape) if add_to is None else add_to
        if out.shape != shape or out.dtype != torch.float32 or not out.is_contiguous():
            raise ValueError(f"expected add_to to be contiguous float32 {list(shape)}")
        if bias is not None and (bias.shape != shape[1:] or bias.dtype != torch.float32):
            raise ValueError(f"expected a float32 bias [{self.out_features}]")
        if not len(x):  # as where a pass wants no logits
            return out
        bias = None if bias is None else bias.contiguous()
        struct = self.struct(bias)
        check(library().outlay_linear(struct, x.data_ptr(), x.shape[0], add_to is not None, out.data_ptr()))
        return out

    def rows(self, index: Tensor) -> Tensor:
        """Returns the weights of the output channels `index`, int64 [n], as float32 [n, in_features]."""
        out, first = torch.empty(len(index), self.in_features), 0
        for part in self.parts:
            here = (index >= first) & (index < first + part.out_features)
            out[here] = part.rows(index[here] - first)
            first += part.out_features
        return out

    def dequantize(self) -> Tensor:
        """Returns the weights as float32 [out_features, in_features]."""
        return self.rows(torch.arange(self.out_features))


def stack(layers: Sequence[PackedLinear]) -> PackedLinear:
    """Returns one layer of the parts of all layers, which read the same input. The weights are not copied."""
    return PackedLinear([part for layer in layers for part in layer.parts])


def _pad(rows: Tensor) -> Tensor:
    """Pads with zero rows to a whole number of tiles, as [tiles, 16, ...]."""
    missing = -len(rows) % _TILE
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
    return rows.reshape(-1, _TILE, *rows.shape[1:])


def _pack_scales(scales: Tensor) -> Tensor:
    """Returns scales [m, groups] as bytes [tiles, groups, 32]."""
    return _pad(scales.to(torch.float16)).transpose(1, 2).contiguous().view(torch.uint8)


def _check_groups(q: Tensor, *scales: Tensor) -> None:
    if q.ndim != 2 or q.shape[1] % _GROUP:
        raise ValueError(f"expected [m, k] with k a multiple of {_GROUP}, not {list(q.shape)}")
    for scale in scales:
        if scale.shape != (q.shape[0], q.shape[1] // _GROUP):
            raise ValueError(f"expected scales {[q.shape[0], q.shape[1] // _GROUP]}, not {list(scale.shape)}")


def pack_q4(q: Tensor, scales: Tensor, minima: Tensor) -> PackedLinear:
    """Packs weights scale * q + minimum, of q uint8 [m, k] in 0..15, scales and minima float16 [m, k/32]."""
    _check_groups(q, scales, minima)
    m, k = q.shape
    halves = _pad(q.to(torch.uint8)).view(-1, _TILE, k // _GROUP, 2, 4, 4)
    packed = (halves[:, :, :, 0] | halves[:, :, :, 1] << 4).permute(0, 2, 3, 1, 4).flatten(2)
    data = torch.cat([_pack_scales(scales), _pack_scales(minima), packed], dim=2)
    return PackedLinear([PackedPart(weights.hold(data), "q4", m, k)])


def pack_q8(q: Tensor, scales: Tensor) -> PackedLinear:
    """Packs weights scale * q, of q int8 [m, k] and scales float16 [m, k/32]."""
    _check_groups(q, scales)
    m, k = q.shape
    packed = _pad(q.to(torch.int8)).view(-1, _TILE, k // _GROUP, 8, 4).permute(0, 2, 3, 1, 4).flatten(2)
    data = torch.cat([_pack_scales(scales), packed.contiguous().view(torch.uint8)], dim=2)
    return PackedLinear([PackedPart(weights.hold(data), "q8", m, k)])


def pack_bf16(weight: Tensor) -> PackedLinear:
    """Packs a weight [m, k], rounded to bfloat16."""
    m, k = weight.shape
    data = _pad(weight.to(torch.bfloat16)).transpose(1, 2).contiguous().view(torch.uint8)
    return PackedLinear([PackedPart(weights.hold(data), "bf16", m, k)])


def pack_f32(weight: Tensor) -> PackedLinear:
    """Packs a weight [m, k] in float32."""
    m, k = weight.shape
    data = _pad(weight.float()).transpose(1, 2).contiguous().view(torch.uint8)
    return PackedLinear([PackedPart(weights.hold(data), "f32", m, k)])


def pack_codebook(
    codebook: CodebookEntries, index: Tensor, residual_index: Tensor | None, out_features: int
) -> PackedLinear:
    """Packs weights (entries[index] + residual[residual_index]) * step.

    Args:
        codebook: The entries.
        index: int64 [vectors, k], k a multiple of 32.
        residual_index: int64 [vectors, k]; None where there is no residual.
        out_features: Channels; those of the last vector that are more don't count.
    """
    if index.ndim != 2 or index.shape[1] % _GROUP or -(-out_features // codebook.v) != len(index):
        raise ValueError(f"expected [m / {codebook.v}, k] with k a multiple of {_GROUP}, not {list(index.shape)}")
    if (residual_index is None) != (codebook.residual is None):
        raise ValueError("expected residual indices where the codebook has a residual")
    data = _with_readable_end(codebook.pack(index, residual_index))
    return PackedLinear([PackedPart(data, "codebook", out_features, index.shape[1], codebook=codebook)])


def pack_sparse(values: Tensor, mask: Tensor, scales: Tensor | None = None, bits: int = 8) -> PackedLinear:
    """Packs weights scale * value, or values as bfloat16, of which only those that a mask keeps are held.

    Args:
        values: int8 [m, k], from -8 to 7 in 4 bits; bfloat16 where there are no scales.
        mask: bool [m, k], as many set in every 32 inputs.
        scales: float16 [m, k / 32]; None: the values are bfloat16.
        bits: 8 or 4, of values with scales.
    """
    if scales is None:
        masks, kept = sparse.blocks_of(values.to(torch.bfloat16), mask, True)
        blocks, form = [masks, kept.view(torch.uint8)], "sparse_bf16"
    else:
        _check_groups(values, scales)
        masks, kept = sparse.blocks_of(values, mask, False)
        stored = kept.view(torch.uint8)
        if bits == 4:
            low, high = (kept + 8).to(torch.uint8).unflatten(2, (-1, 2)).unbind(-1)
            stored = low | high << 4
        blocks, form = [_pack_scales(scales), masks, stored], f"sparse_q{bits}"
    data = _with_readable_end(torch.cat(blocks, 2))
    return PackedLinear([PackedPart(data, form, values.shape[0], values.shape[1], kept=kept.shape[2])])


def _with_readable_end(data: Tensor) -> Tensor:
    return weights.hold(torch.cat([data.flatten(), data.new_zeros(_BEHIND)]))


def quantize_q4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes a weight [m, k] by the range of each group, as Q4_1 does.

    Returns:
        q uint8 [m, k] in 0..15, and scales and minima, float16 [m, k/32].
    """
    _check_groups(weight)
    groups = weight.float().view(len(weight), -1, _GROUP)
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    scales, minima = ((high - low) / 15).half(), low.half()
    inverse = torch.where(scales > 0, 1 / scales.float(), 0.0)
    q = ((groups - minima.float()[..., None]) * inverse[..., None]).round().clamp(0, 15)
    return q.to(torch.uint8).view(weight.shape), scales, minima


def quantize_q8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes a weight [m, k] by the largest size in each group, as Q8_0 does.

    Returns:
        q int8 [m, k] and scales float16 [m, k/32].
    """
    _check_groups(weight)
    groups = weight.float().view(len(weight), -1, _GROUP)
    scales = (groups.abs().amax(dim=2) / 127).half()
    inverse = torch.where(scales > 0, 1 / scales.float(), 0.0)
    return (groups * inverse[..., None]).round().clamp(-127, 127).to(torch.int8).view(weight.shape), scales
