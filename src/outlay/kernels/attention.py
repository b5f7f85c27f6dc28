"""Attention over a cache of keys and values: which rows read which keys, and the operation alone."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from outlay.kernels.native import CacheStruct, PieceStruct, PlanStruct, address, check, library

_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class Piece(NamedTuple):
    """A run of keys and the rows of the pass that read it."""

    start: int  # the first slot
    length: int
    rows: Sequence[int] | None = None  # which rows; None: all rows of the pass, in order
    mask: Tensor | array[int] | None = None  # bool or uint8 [r, length]: what each row sees; None: everything
    limits: Tensor | array[int] | None = None  # int64 [r]: row i sees the first limits[i] keys; None: all
    slots: Tensor | array[int] | None = None  # int64 [length]: where the keys lie, if not in start, start + 1, ...


class Plan:
    """The pieces that the rows of a pass read. A row's result is the softmax over the union of its pieces' keys.

    Its bits depend only on the sequence of the keys that the row sees: piece by piece in the plan's order.
    """

    def __init__(self, pieces: Sequence[Piece], n: int) -> None:
        """pieces: in the order in which keys are accumulated; n: rows of the pass."""
        self.n = n
        self.reach = 0  # one more than the last slot that is read
        self._alive: list[Tensor | array[int]] = []  # the structures hold bare pointers
        at = self._listed([row for piece in pieces for row in piece.rows or ()])
        structs = []
        for piece in pieces:
            rows = n if piece.rows is None else len(piece.rows)
            self._reach(piece)
            mask = piece.mask
            if isinstance(mask, Tensor) and mask.dtype == torch.bool:
                mask = mask.contiguous().view(torch.uint8)
            structs.append(
                PieceStruct(
                    piece.start,
                    piece.length,
                    self._pointer(piece.slots, torch.int64, (piece.length,)),
                    rows,
                    None if piece.rows is None else at,
                    self._pointer(mask, torch.uint8, (rows, piece.length)),
                    self._pointer(piece.limits, torch.int64, (rows,)),
                )
            )
            at += 8 * len(piece.rows or ())
        self._pieces = (PieceStruct * len(structs))(*structs)
        self.struct = PlanStruct(self._pieces, len(structs))

    def _listed(self, rows: list[int]) -> int:
        """Returns where the kernels find these rows; 0 where there are none."""
        if not rows:
            return 0
        low, high = min(rows), max(rows)
        if low < 0 or high >= self.n:
            raise ValueError(f"pieces are read by rows {low}..{high} of a pass with {self.n} rows")
        listed = array("q", rows)
        self._alive.append(listed)
        return listed.buffer_info()[0]

    def _reach(self, piece: Piece) -> None:
        """Notes up to where a piece reads the cache."""
        if not piece.length:
            return
        first, last = piece.start, piece.start + piece.length - 1
        if piece.slots is not None:
            slots = piece.slots.tolist()
            first, last = min(slots), max(slots)
        if first < 0:
            raise ValueError(f"a piece begins at slot {first}")
        self.reach = max(self.reach, last + 1)

    def _pointer(self, tensor: Tensor | array[int] | None, dtype: torch.dtype, shape: tuple[int, ...]) -> int | None:
        if tensor is None:
            return None
        if isinstance(tensor, array):
            if (tensor.itemsize, len(tensor)) != (dtype.itemsize, prod(shape)):
                raise ValueError(f"expected {dtype} {list(shape)}, not {len(tensor)} of {tensor.itemsize} bytes")
            self._alive.append(tensor)
            return tensor.buffer_info()[0]
        if tensor.dtype != dtype or tensor.shape != shape:
            raise ValueError(f"expected {dtype} {list(shape)}, not {tensor.dtype} {list(tensor.shape)}")
        tensor = tensor.contiguous()
        self._alive.append(tensor)
        return tensor.data_ptr()


@dataclass(frozen=True)
class KeyValues:
    """One layer's cache: keys and values [num_kv_heads, capacity, head_dim] in float32, bfloat16 or int8.

    With int8 come the float32 scales [num_kv_heads, capacity, head_dim / group]: a value is its integer times the scale
    of its group of dimensions.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @property
    def capacity(self) -> int:
        """How many slots there are."""
        return self.keys.shape[1]

    def struct(self) -> CacheStruct:
        """The cache as native calls take it. Raises `ValueError` for what they can't read."""
        keys, values, scales = self.keys, self.values, self.key_scales
        if keys.dtype not in _FORMATS or keys.ndim != 3 or keys.stride(2) != 1 or keys.shape[2] % 8:
            raise ValueError(
                "expected float32, bfloat16 or int8 [num_kv_heads, capacity, head_dim] with head_dim a multiple of 8, "
                f"not {keys.dtype} {list(keys.shape)}"
            )
        if keys.shape != values.shape or keys.stride() != values.stride() or keys.dtype != values.dtype:
            raise ValueError("keys and values must have the same dtype, shape and strides")
        group = 0
        if keys.dtype == torch.int8:
            if scales is None or self.value_scales is None or not keys.is_contiguous() or not scales.is_contiguous():
                raise ValueError("an int8 cache is contiguous and comes with contiguous scales")
            group = keys.shape[2] // scales.shape[2]
            if group % 8 or scales.shape != self.value_scales.shape or scales.shape[:2] != keys.shape[:2]:
                raise ValueError("the scales of an int8 cache are those of groups of a multiple of 8 dimensions")
        return CacheStruct(
            keys.data_ptr(),
            values.data_ptr(),
            address(scales),
            address(self.value_scales),
            keys.stride(0),
            keys.stride(1),
            _FORMATS[keys.dtype],
            group,
        )


def store(cache: KeyValues, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Writes k and v float32 [n, num_kv_heads, head_dim] to slots int64 [n], in the cache's format."""
    n, heads, head_dim = k.shape
    if (
        slots.dtype != torch.int64
        or slots.shape != (n,)
        or (n and not 0 <= slots.min() <= slots.max() < cache.capacity)
    ):
        raise ValueError(f"expected {n} slots of a cache with {cache.capacity}")
    k, v, slots = k.contiguous(), v.contiguous(), slots.contiguous()
    struct = cache.struct()
    check(library().outlay_store(struct, k.data_ptr(), v.data_ptr(), slots.data_ptr(), n, heads, head_dim))


def attend(
    q: Tensor, cache: KeyValues, plan: Plan, scale: float, *, softcap: float | None = None, lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Attention of q float32 [n, num_heads, head_dim] over a cache.

    Returns the output, like q, and the log-sum-exp [n, num_heads] if asked for. A row without keys gives 0 and -inf.
    """
    n, num_heads, head_dim = q.shape
    if plan.n != n:
        raise ValueError(f"the plan is for {plan.n} rows, not {n}")
    keys, struct = cache.keys, cache.struct()
    if keys.shape[2] != head_dim or num_heads % keys.shape[0]:
        raise ValueError(f"queries {list(q.shape)} do not fit keys {list(keys.shape)}")
    if plan.reach > cache.capacity:
        raise ValueError(f"the plan reads slot {plan.reach - 1} of a cache with {cache.capacity}")
    q = q.contiguous()
    out = torch.empty_like(q)
    sums = torch.empty(n, num_heads) if lse else None
    heads, kv_heads = num_heads, keys.shape[0]
    check(
        library().outlay_attend(
            q.data_ptr(), struct, n, heads, kv_heads, head_dim, scale, softcap or 0.0, plan.struct, out.data_ptr(),
            address(sums),
        )
    )  # fmt: skip
    return out, sums
