"""Attention over a cache of keys and values: which rows read which keys, and the operation alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outlay.kernels.native import PieceStruct, PlanStruct, address, check, library


@dataclass(frozen=True)
class Piece:
    """A run of keys and the rows of the pass that read it."""

    start: int  # the first slot
    length: int
    rows: Tensor | None = None  # int64 [r]: which rows; None: all rows of the pass, in order
    mask: Tensor | None = None  # bool or uint8 [r, length]: what each row sees; None: everything
    limits: Tensor | None = None  # int64 [r]: row i sees the first limits[i] keys; None: all
    slots: Tensor | None = None  # int64 [length]: where the keys lie, if not in start, start + 1, ...


class Plan:
    """The pieces that the rows of a pass read. A row's result is the softmax over the union of its pieces' keys.

    Its bits depend only on the sequence of the keys that the row sees: piece by piece in the plan's order.
    """

    def __init__(self, pieces: Sequence[Piece], n: int) -> None:
        """pieces: in the order in which keys are accumulated; n: rows of the pass."""
        self.n = n
        self.reach = 0  # one more than the last slot that is read
        self._alive: list[Tensor] = []  # the structures hold bare pointers
        self._pieces = (PieceStruct * len(pieces))()
        for struct, piece in zip(self._pieces, pieces, strict=True):
            rows = n if piece.rows is None else len(piece.rows)
            struct.start, struct.length, struct.n_rows = piece.start, piece.length, rows
            if piece.length and rows:
                self._check_bounds(piece)
            struct.rows = self._pointer(piece.rows, torch.int64, (rows,))
            struct.limits = self._pointer(piece.limits, torch.int64, (rows,))
            struct.slots = self._pointer(piece.slots, torch.int64, (piece.length,))
            mask = piece.mask
            if mask is not None and mask.dtype == torch.bool:
                mask = mask.contiguous().view(torch.uint8)
            struct.mask = self._pointer(mask, torch.uint8, (rows, piece.length))
        self.struct = PlanStruct(self._pieces, len(pieces))

    def _check_bounds(self, piece: Piece) -> None:
        first, last = piece.start, piece.start + piece.length - 1
        if piece.slots is not None:
            first, last = (int(end) for end in piece.slots.aminmax())
        if first < 0:
            raise ValueError(f"a piece begins at slot {first}")
        self.reach = max(self.reach, last + 1)
        if piece.rows is not None:
            low, high = (int(end) for end in piece.rows.aminmax())
            if low < 0 or high >= self.n:
                raise ValueError(f"a piece is read by rows {low}..{high} of a pass with {self.n} rows")

    def _pointer(self, tensor: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> int | None:
        if tensor is None:
            return None
        if tensor.dtype != dtype or tensor.shape != shape:
            raise ValueError(f"expected {dtype} {list(shape)}, not {tensor.dtype} {list(tensor.shape)}")
        tensor = tensor.contiguous()
        self._alive.append(tensor)
        return tensor.data_ptr()


def attend(
    q: Tensor, keys: Tensor, values: Tensor, plan: Plan, scale: float, lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Attention of q [n, num_heads, head_dim] over keys and values [num_kv_heads, capacity, head_dim], all float32.

    Returns the output, like q, and the log-sum-exp [n, num_heads] if asked for. A row without keys gives 0 and -inf.
    """
    n, num_heads, head_dim = q.shape
    if plan.n != n:
        raise ValueError(f"the plan is for {plan.n} rows, not {n}")
    check_cache(keys, values)
    if head_dim % 8 or keys.shape[2] != head_dim or num_heads % keys.shape[0]:
        raise ValueError(f"queries {list(q.shape)} do not fit keys {list(keys.shape)} (head_dim: a multiple of 8)")
    if plan.reach > keys.shape[1]:
        raise ValueError(f"the plan reads slot {plan.reach - 1} of a cache with {keys.shape[1]}")
    q = q.contiguous()
    out = torch.empty_like(q)
    sums = torch.empty(n, num_heads) if lse else None
    check(
        library().outlay_attend(
            q.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            keys.stride(0),
            keys.stride(1),
            n,
            num_heads,
            keys.shape[0],
            head_dim,
            scale,
            plan.struct,
            out.data_ptr(),
            address(sums),
        )
    )
    return out, sums


def check_cache(keys: Tensor, values: Tensor) -> None:
    """keys, values: float32 [num_kv_heads, capacity, head_dim] with the same strides, a head's floats adjacent."""
    for tensor in (keys, values):
        if tensor.dtype != torch.float32 or tensor.ndim != 3 or tensor.stride(2) != 1:
            raise ValueError(f"expected float32 [num_kv_heads, capacity, head_dim], not {tensor.dtype} {tensor.shape}")
    if keys.shape != values.shape or keys.stride() != values.stride():
        raise ValueError("keys and values must have the same shape and strides")
