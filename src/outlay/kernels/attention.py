"""Attention over a KV cache: which rows attend to which keys, and the operation alone."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from outlay.kernels.native import AttentionPlanStruct, AttentionSpanStruct, KVCacheStruct, address, check, library

_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class AttentionSpan(NamedTuple):
    """A run of keys and values in the KV cache, and the rows of the pass that attend to it."""

    start: int
    """The first slot."""

    length: int
    """The number of keys."""

    rows: Sequence[int] | None = None
    """The rows that attend to it; None: all rows of the pass, in order."""

    mask: Tensor | array[int] | None = None
    """bool or uint8 [rows, length], true where a row sees a key; None: every row sees every key."""

    limits: Tensor | array[int] | None = None
    """int64 [rows]: row i sees the first limits[i] keys; None: all."""

    slots: Tensor | array[int] | None = None
    """int64 [length], the keys' slots, if not start, start + 1, ..."""


class AttentionPlan:
    """The spans that the rows of a pass attend to. A row's result is the softmax over the union of its spans' keys.

    Its bits depend only on the sequence of the keys that the row sees: span by span in the plan's order.
    """

    def __init__(self, spans: Sequence[AttentionSpan], n: int) -> None:
        """Checks the spans and lays them out for native calls.

        Args:
            spans: In the order in which their keys are accumulated.
            n: The rows of the pass.

        Raises:
            ValueError: Where a span names a row or a slot that cannot be, or an array does not fit its length.
        """
        self.n, self.spans = n, tuple(spans)
        self.end_slot = 0  # one more than the last slot that is read
        self._alive: list[Tensor | array[int]] = []  # the structures hold bare pointers
        rows_address = self._address_of_rows([row for span in spans for row in span.rows or ()])
        structs = []
        for span in spans:
            structs.append(self._struct(span, rows_address))
            rows_address += 8 * len(span.rows or ())
            self.end_slot = max(self.end_slot, _end_slot(span))
        self._spans = (AttentionSpanStruct * len(structs))(*structs)
        self.struct = AttentionPlanStruct(spans=self._spans, n_spans=len(structs))

    def keys_of(self, row: int) -> int:
        """Returns how many keys a row goes over at most, those that a mask hides included."""
        return sum(span.length for span in self.spans if span.rows is None or row in span.rows)

    def _struct(self, span: AttentionSpan, rows_address: int) -> AttentionSpanStruct:
        n_rows = self.n if span.rows is None else len(span.rows)
        mask = span.mask
        if isinstance(mask, Tensor) and mask.dtype == torch.bool:
            mask = mask.contiguous().view(torch.uint8)
        return AttentionSpanStruct(
            start=span.start,
            length=span.length,
            slots=self._address(span.slots, torch.int64, (span.length,)),
            n_rows=n_rows,
            rows=None if span.rows is None else rows_address,
            mask=self._address(mask, torch.uint8, (n_rows, span.length)),
            limits=self._address(span.limits, torch.int64, (n_rows,)),
        )

    def _address_of_rows(self, rows: list[int]) -> int:
        """Returns where native calls find these rows; 0 where there are none."""
        if not rows:
            return 0
        low, high = min(rows), max(rows)
        if low < 0 or high >= self.n:
            raise ValueError(f"spans are read by rows {low}..{high} of a pass with {self.n} rows")
        listed = array("q", rows)
        self._alive.append(listed)
        return listed.buffer_info()[0]

    def _address(self, values: Tensor | array[int] | None, dtype: torch.dtype, shape: tuple[int, ...]) -> int | None:
        if values is None:
            return None
        if isinstance(values, array):
            if (values.itemsize, len(values)) != (dtype.itemsize, prod(shape)):
                raise ValueError(f"expected {dtype} {list(shape)}, not {len(values)} of {values.itemsize} bytes")
            self._alive.append(values)
            return values.buffer_info()[0]
        if values.dtype != dtype or values.shape != shape:
            raise ValueError(f"expected {dtype} {list(shape)}, not {values.dtype} {list(values.shape)}")
        values = values.contiguous()
        self._alive.append(values)
        return values.data_ptr()


def _end_slot(span: AttentionSpan) -> int:
    """Returns one more than the last slot that a span reads; 0 where it reads none."""
    if not span.length:
        return 0
    first, last = span.start, span.start + span.length - 1
    if span.slots is not None:
        slots = span.slots.tolist()
        first, last = min(slots), max(slots)
    if first < 0:
        raise ValueError(f"a span begins at slot {first}")
    return last + 1


@dataclass(frozen=True)
class KeyValues:
    """One layer's KV cache, in float32, bfloat16 or int8.

    In int8 a value is its integer times the scale of its group of dimensions.
    """

    keys: Tensor
    """[num_kv_heads, capacity, head_dim]"""

    values: Tensor
    """[num_kv_heads, capacity, head_dim]; the keys themselves where a model's values are its keys."""

    key_scales: Tensor | None = None
    """float32 [num_kv_heads, capacity, head_dim / group], with int8 keys."""

    value_scales: Tensor | None = None
    """float32 [num_kv_heads, capacity, head_dim / group], with int8 values."""

    @property
    def capacity(self) -> int:
        """The number of slots."""
        return self.keys.shape[1]

    @property
    def parts(self) -> list[Tensor]:
        """The tensors that it has: values that are the keys are there once."""
        found = [self.keys, self.key_scales]
        if self.values is not self.keys:
            found += [self.values, self.value_scales]
        return [part for part in found if part is not None]

    def struct(self) -> KVCacheStruct:
        """Returns the cache as native calls take it.

        Raises:
            ValueError: Where they cannot read it.
        """
        keys, values = self.keys, self.values
        if keys.dtype not in _FORMATS or keys.ndim != 3 or keys.stride(2) != 1 or keys.shape[2] % 8:
            raise ValueError(
                "expected float32, bfloat16 or int8 [num_kv_heads, capacity, head_dim] with head_dim a multiple of 8, "
                f"not {keys.dtype} {list(keys.shape)}"
            )
        if keys.shape != values.shape or keys.stride() != values.stride() or keys.dtype != values.dtype:
            raise ValueError("keys and values must have the same dtype, shape and strides")
        return KVCacheStruct(
            k=keys.data_ptr(),
            v=values.data_ptr(),
            k_scales=address(self.key_scales),
            v_scales=address(self.value_scales),
            head_stride=keys.stride(0),
            slot_stride=keys.stride(1),
            format=_FORMATS[keys.dtype],
            group=self._group() if keys.dtype == torch.int8 else 0,
        )

    def _group(self) -> int:
        """Returns how many dimensions of an int8 cache share a scale."""
        keys, scales = self.keys, self.key_scales
        if scales is None or self.value_scales is None or not keys.is_contiguous() or not scales.is_contiguous():
            raise ValueError("an int8 cache is contiguous and comes with contiguous scales")
        group = keys.shape[2] // scales.shape[2]
        if group % 8 or scales.shape != self.value_scales.shape or scales.shape[:2] != keys.shape[:2]:
            raise ValueError("the scales of an int8 cache are those of groups of a multiple of 8 dimensions")
        return group


def store(kv: KeyValues, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Writes keys and values to slots of a KV cache, in its format.

    Args:
        kv: The cache.
        slots: int64 [n].
        k: float32 [n, num_kv_heads, head_dim].
        v: float32 [n, num_kv_heads, head_dim].

    Raises:
        ValueError: Where a slot lies outside the cache.
    """
    n, heads, head_dim = k.shape
    if slots.dtype != torch.int64 or slots.shape != (n,) or (n and not 0 <= slots.min() <= slots.max() < kv.capacity):
        raise ValueError(f"expected {n} slots of a cache with {kv.capacity}")
    k, v, slots = k.contiguous(), v.contiguous(), slots.contiguous()
    check(library().outlay_store(kv.struct(), k.data_ptr(), v.data_ptr(), slots.data_ptr(), n, heads, head_dim))


def attend(
    q: Tensor,
    kv: KeyValues,
    plan: AttentionPlan,
    scale: float,
    *,
    softcap: float | None = None,
    lse: bool = False,
    weights: Mapping[int, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Computes attention over a KV cache.

    Args:
        q: float32 [n, num_heads, head_dim].
        kv: The cache.
        plan: The keys that each of the n rows sees.
        scale: Factor on the products of queries and keys.
        softcap: Scores become softcap * tanh(score / softcap).
        lse: Whether the log-sum-exp is wanted.
        weights: For rows whose weights are wanted, what receives them: float32 [num_heads, stride], where the stride is
            a multiple of 16. A row's keys are in the order of the plan, 0 where it does not see one.

    Returns:
        The output, of q's shape, and the log-sum-exp [n, num_heads] if wanted. A row without keys gives 0 and -inf.

    Raises:
        ValueError: Where queries, cache and plan do not fit each other.
    """
    n, num_heads, head_dim = q.shape
    num_kv_heads = kv.keys.shape[0]
    if plan.n != n:
        raise ValueError(f"the plan is for {plan.n} rows, not {n}")
    struct = kv.struct()
    if kv.keys.shape[2] != head_dim or num_heads % num_kv_heads:
        raise ValueError(f"queries {list(q.shape)} do not fit keys {list(kv.keys.shape)}")
    if plan.end_slot > kv.capacity:
        raise ValueError(f"the plan reads slot {plan.end_slot - 1} of a cache with {kv.capacity}")
    q = q.contiguous()
    out = torch.empty_like(q)
    sums = torch.empty(n, num_heads) if lse else None
    receivers, stride = weight_addresses(weights or {}, n, (num_heads,), plan)
    check(
        library().outlay_attend(
            q.data_ptr(), struct, n, num_heads, num_kv_heads, head_dim, scale, softcap or 0.0, plan.struct,
            out.data_ptr(), address(sums), None if receivers is None else receivers.buffer_info()[0], stride,
        )
    )  # fmt: skip
    return out, sums


def weight_addresses(
    weights: Mapping[int, Tensor], n: int, shape: tuple[int, ...], *plans: AttentionPlan
) -> tuple[array[int] | None, int]:
    """Returns for each of n rows where its weights go, 0 for nowhere, and the stride of a head; None without any.

    Args:
        weights: What receives the weights of rows, float32 [*shape, stride].
        n: The rows.
        shape: The layers, if there are several, and the heads.
        plans: The keys that the rows see.

    Raises:
        ValueError: Where what receives them does not fit.
    """
    if not weights:
        return None, 0
    stride = next(iter(weights.values())).shape[-1]
    for row, each in weights.items():
        if each.shape != (*shape, stride) or each.dtype != torch.float32 or not each.is_contiguous() or stride % 16:
            raise ValueError(f"expected contiguous float32 {[*shape]} with a multiple of 16 keys, not {[*each.shape]}")
        if not 0 <= row < n or any(plan.keys_of(row) > stride for plan in plans):
            raise ValueError(f"row {row} has no weights, or more than {stride}")
    return array("Q", [weights[row].data_ptr() if row in weights else 0 for row in range(n)]), stride
