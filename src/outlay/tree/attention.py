"""Attention over the token tree: each KV span of the plan gives an output and its log-sum-exp, and these are merged.

The merge is exact: for disjoint key sets with outputs o_t and log-sum-exps l_t, the output over their union is
sum_t exp(l_t - l) o_t with l = log sum_t exp(l_t) (Hydragen, Juravsky et al. 2024, section 3.1).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from outlay import kernels
from outlay.models.config import DecoderConfig
from outlay.tree.attention_rows import AttentionRows
from outlay.tree.cache import KV_DTYPES, Cache
from outlay.tree.plan import KVSpan, PassPlan, StoredSpan
from outlay.tree.stored import HeldKeys


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Computes attention with its log-sum-exp.

    Args:
        q: queries, [heads, n, head_dim].
        k: keys, [heads, length, head_dim].
        v: values, [heads, length, head_dim].
        bias: added to the scaled scores, [n, length] or [heads, n, length]: -inf where a row does not see a key. Every
            row sees one.
        scale: multiplies the scores.
        softcap: caps the scaled scores to softcap * tanh(score / softcap).

    Returns:
        The output [heads, n, head_dim] in q's dtype, and the natural log-sum-exp [heads, n] in float32.
    """
    if softcap is None and q.device.type == "cpu":
        mask = None if bias is None else bias[None] if bias.dim() == 3 else bias[None, None]
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[None], k[None], v[None], 0.0, False, attn_mask=mask, scale=scale
        )
        return out[0], lse[0]
    if softcap is None and q.device.type in ("cuda", "meta"):  # meta, to see the shapes where there is no GPU
        return _attend_on_gpu(q, k, v, bias, scale)
    return attend_reference(q, k, v, bias, scale, softcap)


def _attend_on_gpu(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Calls torch's memory-efficient kernel, which alone takes a bias and any float and returns the log-sum-exp.

    It needs the rows of the bias aligned, and pads the log-sum-exp.
    """
    mask = None if bias is None else aligned(bias).expand(1, len(q), -1, -1)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q[None], k[None], v[None], mask, True, scale=scale
    )
    return out[0], lse[0, :, : q.shape[1]]


def aligned(bias: Tensor) -> Tensor:
    """Returns `bias` [..., n, length] with its rows a multiple of 16 elements apart."""
    padded = bias.new_empty(*bias.shape[:-1], -(-bias.shape[-1] // 16) * 16)[..., : bias.shape[-1]]
    return padded.copy_(bias)


def attend_reference(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Computes what `attend` does, in plain operators on any device, with float32 scores."""
    scores = torch.matmul(q, k.transpose(1, 2)).float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    lse = scores.logsumexp(-1)
    return torch.matmul(torch.exp(scores - lse[..., None]).to(v.dtype), v), lse


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Merges attention over two disjoint sets of keys.

    Args:
        out: output over the first set, [..., head_dim]; 0 for an empty set.
        lse: its log-sum-exp, [...]; -inf for an empty set.
        other: output over the second set.
        other_lse: its log-sum-exp.

    Returns:
        Output and log-sum-exp over the union.
    """
    total = torch.logaddexp(lse, other_lse)
    finite = torch.where(total.isinf(), 0.0, total)  # both empty: weights 0, not NaN
    mine, others = torch.exp(lse - finite)[..., None], torch.exp(other_lse - finite)[..., None]
    return out * mine + other * others, total


def beside_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Returns attention's output when each head also sees a key of value 0.

    Args:
        out: output over the other keys, [n, num_heads, head_dim].
        lse: its log-sum-exp, [n, num_heads].
        sinks: the scores of the keys of value 0, [num_heads].
    """
    return out * torch.sigmoid(lse - sinks)[..., None].to(out.dtype)


@dataclass(frozen=True)
class _Reader:
    """A KV span, with its rows and mask in the form that every layer uses."""

    keys: slice | Tensor
    rows: Tensor | None  # None: all rows of the pass
    bias: Tensor | None  # [rows * group, length], or [num_kv_heads, rows * group, length]


def attention_of(
    cache: Cache,
    plan: PassPlan,
    config: DecoderConfig,
    dtype: torch.dtype = torch.float32,
    sinks: Sequence[Tensor | None] = (),
    relative: Tensor | None = None,
    watched: AttentionRows | None = None,
) -> TreeAttention | KernelAttention | StoredAttention:
    """Returns the attention of one pass: by the native kernels where these can read the cache, else in torch.

    What policies hold is read in torch and merged with it.

    Args:
        cache: Keys and values.
        plan: What each row reads.
        config: The model's shape.
        dtype: The queries' dtype.
        sinks: `Decoder.sinks`.
        relative: `Decoder.relative`, which the kernels don't add.
        watched: What receives the weights of rows, if they are wanted.
    """
    native = cache.device.type == "cpu" and cache.dtype in KV_DTYPES.values() and config.head_dim % 8 == 0
    attention: TreeAttention | KernelAttention
    if native and relative is None and kernels.available():
        attention = KernelAttention(cache, plan, config, sinks, watched)
    else:
        attention = TreeAttention(cache, plan, config, dtype, sinks, relative, watched)
    return StoredAttention(attention, plan, config, sinks, watched) if plan.stored else attention


class KernelAttention:
    """As `TreeAttention`, by the native kernels: all spans of a layer in one call, a row with the bits it has alone."""

    def __init__(
        self,
        cache: Cache,
        plan: PassPlan,
        config: DecoderConfig,
        sinks: Sequence[Tensor | None] = (),
        watched: AttentionRows | None = None,
    ) -> None:
        self._cache, self._config, self._sinks, self._watched = cache, config, sinks, watched
        self._slots = _as_slice(plan.slots) or torch.tensor(plan.slots)
        n = len(plan.keys_seen)
        self._plans = {
            window: kernels.AttentionPlan([span_for_kernels(span, n) for span in spans], n)
            for window, spans in plan.kv_spans.items()
        }

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, num_heads, head_dim], k and v [n, num_kv_heads, head_dim] -> output [n, num_heads, head_dim]."""
        self._cache.write(layer, self._slots, k, v)
        return self.read(layer, q)

    def read(self, layer: int, q: Tensor) -> Tensor:
        """q [n, num_heads, head_dim] -> what the rows read of a layer, [n, num_heads, head_dim]."""
        sinks = self._sinks[layer] if self._sinks else None
        out, lse = self._attend(layer, q, lse=sinks is not None)
        if sinks is not None and lse is not None:
            out = beside_sinks(out, lse, sinks)
            _scale_watched(self._watched, layer, lse, sinks)
        return out.to(q.dtype)

    def write_and_attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As a call, but returns the output without sinks, and its log-sum-exp [n, num_heads], both float32."""
        self._cache.write(layer, self._slots, k, v)
        out, lse = self._attend(layer, q, lse=True)
        assert lse is not None, "the log-sum-exp was asked for"
        return out, lse

    def _attend(self, layer: int, q: Tensor, *, lse: bool) -> tuple[Tensor, Tensor | None]:
        config = self._config
        return kernels.attend(
            q.float(),
            self._cache.layers[layer],
            self._plans[config.windows[layer]],
            config.attention_scale,
            softcap=config.attention_softcap,
            lse=lse,
            weights=None if self._watched is None else self._watched.of_layer(layer),
        )


def span_for_kernels(span: KVSpan, n: int) -> kernels.AttentionSpan:
    """Returns a span in the form that the kernels take, for a pass over `n` rows."""
    return kernels.AttentionSpan(
        span.start,
        span.length,
        rows=None if len(span.rows) == n and span.rows == tuple(range(n)) else span.rows,
        mask=span.mask,
        limits=span.limits,
        slots=span.slots,
    )


class TreeAttention:
    """The attention of one pass, as `Decoder` calls it: writes new keys and values, and reads what the plan says."""

    def __init__(
        self,
        cache: Cache,
        plan: PassPlan,
        config: DecoderConfig,
        dtype: torch.dtype = torch.float32,
        sinks: Sequence[Tensor | None] = (),
        relative: Tensor | None = None,
        watched: AttentionRows | None = None,
    ) -> None:
        """Prepares what all layers use.

        Args:
            cache: Keys and values.
            plan: What each row reads.
            config: The model's shape.
            dtype: The queries' dtype.
            sinks: `Decoder.sinks`.
            relative: `Decoder.relative`.
            watched: What receives the weights of rows, if they are wanted.
        """
        self._cache, self._config, self._dtype, self._sinks = cache, config, dtype, sinks
        self._relative, self._positions = relative, plan.positions
        self._watched, self._spans = watched, plan.kv_spans
        self._count = len(plan.keys_seen)
        self._slots = _as_slice(plan.slots) or torch.tensor(plan.slots, device=cache.device)
        self._readers = {window: [self._reader(span) for span in spans] for window, spans in plan.kv_spans.items()}
        self._each_row_once = {window: plan.each_row_once(window) for window in plan.kv_spans}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, num_heads, head_dim], k and v [n, num_kv_heads, head_dim] -> output [n, num_heads, head_dim]."""
        self._cache.write(layer, self._slots, k, v)
        return self.read(layer, q)

    def read(self, layer: int, q: Tensor) -> Tensor:
        """q [n, num_heads, head_dim] -> what the rows read of a layer, [n, num_heads, head_dim]."""
        out, lse = self._attended_and_weighed(layer, q)
        sinks = self._sinks[layer] if self._sinks else None
        if sinks is None:
            return out
        _scale_watched(self._watched, layer, lse, sinks)
        return beside_sinks(out, lse, sinks)

    def write_and_attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As a call, but returns the output without sinks, and its log-sum-exp [n, num_heads], both float32."""
        self._cache.write(layer, self._slots, k, v)
        out, lse = self._attended_and_weighed(layer, q)
        return out.float(), lse

    def _attended_and_weighed(self, layer: int, q: Tensor) -> tuple[Tensor, Tensor]:
        """As `_attended`; writes the weights of watched rows as well."""
        out, lse = self._attended(layer, q)
        if self._watched is not None:
            for row, weights in self._watched.of_layer(layer).items():
                self._weigh(layer, row, q[row], lse[row], weights)
        return out, lse

    def _weigh(self, layer: int, row: int, q: Tensor, lse: Tensor, weights: Tensor) -> None:
        """Writes a row's weights, span by span; q [num_heads, head_dim], lse [num_heads], weights [num_heads, keys]."""
        config, window = self._config, self._config.windows[layer]
        group, at = config.num_heads // config.num_kv_heads, 0
        for span, reader in zip(self._spans[window], self._readers[window], strict=True):
            if row not in span.rows:
                continue
            place = span.rows.index(row)
            keys, _ = self._cache.read(layer, reader.keys, q.dtype)
            scores = row_scores(q, keys, config)
            if reader.bias is not None:
                bias = reader.bias[..., place * group : (place + 1) * group, :]
                scores = (scores.unflatten(0, (-1, group)) + bias).flatten(0, 1)
            count = span.length if span.limits is None else min(span.limits[place], span.length)
            weights[:, at : at + count] = torch.exp(scores[:, :count] - lse[:, None])
            at += count

    def _attended(self, layer: int, q: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the output of all rows, and its log-sum-exp [n, num_heads]."""
        window = self._config.windows[layer]
        readers = self._readers[window]
        if len(readers) == 1 and readers[0].rows is None:
            return self._read(readers[0], layer, q)
        if self._each_row_once[window]:
            out, lse = torch.empty_like(q), torch.empty(q.shape[:2], device=q.device)
            for reader in readers:
                out[reader.rows], lse[reader.rows] = self._read(reader, layer, q[reader.rows])
            return out, lse
        return self._merged(readers, layer, q)

    def _merged(self, readers: list[_Reader], layer: int, q: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.full(q.shape[:2], -torch.inf, device=q.device)
        for reader in readers:
            rows = slice(None) if reader.rows is None else reader.rows
            out[rows], lse[rows] = merge(out[rows], lse[rows], *self._read(reader, layer, q[rows]))
        return out.to(q.dtype), lse

    def _read(self, reader: _Reader, layer: int, q: Tensor) -> tuple[Tensor, Tensor]:
        """Folds the query heads of a group into rows, so that keys and values are read without repeating them."""
        config = self._config
        n, heads, group = len(q), config.num_kv_heads, config.num_heads // config.num_kv_heads
        folded = q.view(n, heads, group, -1).transpose(0, 1).reshape(heads, n * group, -1)
        keys, values = self._cache.read(layer, reader.keys, q.dtype)
        out, lse = attend(folded, keys, values, reader.bias, config.attention_scale, config.attention_softcap)
        out = out.reshape(heads, n, group, -1).transpose(0, 1).reshape(n, config.num_heads, -1)
        return out.to(q.dtype), lse.reshape(heads, n, group).transpose(0, 1).reshape(n, config.num_heads)

    def _reader(self, span: KVSpan) -> _Reader:
        device, dtype = self._cache.device, self._dtype
        bias = None
        mask = _mask(span)
        if mask is not None:
            group = self._config.num_heads // self._config.num_kv_heads
            bias = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
            bias = bias.repeat_interleave(group, 0).to(device)
        if self._relative is not None:
            by_distance = self._by_distance(span, self._relative)
            bias = by_distance if bias is None else by_distance + bias
        every_row = len(span.rows) == self._count and span.rows == tuple(range(self._count))
        rows = None if every_row else torch.tensor(span.rows, device=device)
        keys = slice(span.start, span.start + span.length)
        return _Reader(keys if span.slots is None else _tensor(span.slots, torch.int64).to(device), rows, bias)

    def _by_distance(self, span: KVSpan, relative: Tensor) -> Tensor:
        """Returns the bias by distance of a span's rows and keys, [num_kv_heads, rows * group, length]."""
        where = slice(span.start, span.start + span.length) if span.slots is None else np.asarray(span.slots)
        keys = torch.from_numpy(self._cache.positions[where])
        rows = torch.tensor([self._positions[row] for row in span.rows])
        longest = relative.shape[1] // 2
        distances = (keys - rows[:, None]).clamp(-longest, longest) + longest
        heads = self._config.num_kv_heads
        bias = relative.to(self._dtype)[:, distances.to(relative.device)]
        return bias.unflatten(0, (heads, -1)).transpose(1, 2).flatten(1, 2)


class StoredAttention:
    """Attention over keys in slots and, merged with it, over what policies hold: each layer another number of keys."""

    def __init__(
        self,
        attention: TreeAttention | KernelAttention,
        plan: PassPlan,
        config: DecoderConfig,
        sinks: Sequence[Tensor | None] = (),
        watched: AttentionRows | None = None,
    ) -> None:
        """Prepares what all layers use.

        Args:
            attention: Over the keys in slots; each row reads its own there.
            plan: What each row reads.
            config: The model's shape.
            sinks: `Decoder.sinks`.
            watched: What receives the weights of rows, if they are wanted.
        """
        self._attention, self._spans, self._config, self._sinks = attention, plan.stored, config, sinks
        self._positions, self._watched = plan.positions, watched

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, num_heads, head_dim], k and v [n, num_kv_heads, head_dim] -> output [n, num_heads, head_dim]."""
        out, lse = self._attention.write_and_attend(layer, q, k, v)
        in_slots, watched = lse.clone(), list[tuple[int, HeldKeys, Tensor | None]]()
        for span in self._spans:
            held = span.segment.read(layer, q.dtype)
            if held is None:
                continue
            rows, seen = self._seen(layer, span, held.positions)
            if rows:
                bias = None if seen is None else torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, -torch.inf)
                out[rows], lse[rows] = merge(out[rows], lse[rows], *self._attend(q[rows], held, bias))
            if self._watched is not None:
                for place, row in enumerate(rows):
                    if row in self._watched.weights:
                        watched.append((row, held, None if seen is None else seen[place]))
        sinks = self._sinks[layer] if self._sinks else None
        self._weigh(layer, q, in_slots, lse if sinks is None else torch.logaddexp(lse, sinks), watched)
        return (out if sinks is None else beside_sinks(out, lse, sinks)).to(q.dtype)

    def _attend(self, q: Tensor, held: HeldKeys, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns what n rows read of held keys: output [n, num_heads, head_dim] and log-sum-exp [n, num_heads]."""
        config = self._config
        n, heads, group = len(q), config.num_kv_heads, config.num_heads // config.num_kv_heads
        folded = q.view(n, heads, group, -1).transpose(0, 1).reshape(heads, n * group, -1)
        if bias is not None:
            bias = bias.repeat_interleave(group, 0).to(q.device)
        out, lse = attend(folded, held.keys, held.values, bias, config.attention_scale, config.attention_softcap)
        out = out.reshape(heads, n, group, -1).transpose(0, 1).reshape(n, config.num_heads, -1)
        return out.float(), lse.reshape(heads, n, group).transpose(0, 1).reshape(n, config.num_heads)

    def _seen(self, layer: int, span: StoredSpan, positions: Tensor) -> tuple[list[int], Tensor | None]:
        """Returns the rows that see any of the keys, and which they see, bool [rows, keys]; None where that is all."""
        rows, window = list(span.rows), self._config.windows[layer]
        if window is None:
            return rows, None
        at = torch.tensor([self._positions[row] for row in rows])
        seen = positions.cpu() > at[:, None] - window
        some = seen.any(1).nonzero()[:, 0].tolist()
        return [rows[place] for place in some], None if bool(seen.all()) else seen[some]

    def _weigh(
        self, layer: int, q: Tensor, in_slots: Tensor, lse: Tensor, rows: Sequence[tuple[int, HeldKeys, Tensor | None]]
    ) -> None:
        """Writes the weights of watched rows: those in slots were relative to their own sum, `in_slots`."""
        if self._watched is None:
            return
        for row in self._watched.weights:
            self._watched.scale(layer, row, torch.exp(in_slots[row] - lse[row]))
        for row, held, seen in rows:
            scores = row_scores(q[row], held.keys, self._config)
            if seen is not None:
                scores[:, ~seen] = -torch.inf
            self._watched.add_stored(layer, row, held.positions, torch.exp(scores - lse[row][:, None]))

    def read(self, layer: int, q: Tensor) -> Tensor:
        """There is no reading without writing: a row reads its own key in a slot."""
        raise NotImplementedError("a pass over what a policy holds writes the keys of its rows")


def row_scores(q: Tensor, keys: Tensor, config: DecoderConfig) -> Tensor:
    """Returns the scaled scores of queries, float32 [..., num_heads, length]: q [..., num_heads, head_dim].

    Args:
        q: Queries of one row, or of several.
        keys: [num_kv_heads, length, head_dim].
        config: The model's shape.
    """
    grouped = q.unflatten(-2, (config.num_kv_heads, -1))
    scores = torch.matmul(grouped, keys.transpose(1, 2)).float() * config.attention_scale
    if config.attention_softcap is not None:
        scores = torch.tanh(scores / config.attention_softcap) * config.attention_softcap
    return scores.flatten(-3, -2)


def _scale_watched(watched: AttentionRows | None, layer: int, lse: Tensor, sinks: Tensor) -> None:
    """Takes from the weights of watched rows what the sinks take; lse [n, num_heads], sinks [num_heads]."""
    if watched is not None:
        for row, weights in watched.of_layer(layer).items():
            weights *= torch.sigmoid(lse[row] - sinks)[:, None]


def _mask(span: KVSpan) -> Tensor | None:
    """Returns what each row sees, bool [rows, length], or None where every row sees everything."""
    if span.mask is not None:
        return _tensor(span.mask, torch.bool).view(len(span.rows), span.length)
    if span.limits is None:
        return None
    return torch.arange(span.length) < _tensor(span.limits, torch.int64)[:, None]


def _tensor(integers: array[int], dtype: torch.dtype) -> Tensor:
    """Returns integers as a tensor of a dtype of their size, in the same memory."""
    return torch.frombuffer(integers, dtype=dtype)


def _as_slice(slots: Sequence[int]) -> slice | None:
    if not slots:
        return slice(0, 0)
    contiguous = range(slots[0], slots[0] + len(slots))
    return slice(contiguous.start, contiguous.stop) if list(slots) == list(contiguous) else None
