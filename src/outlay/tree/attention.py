"""Attention over the token tree: each KV span of the plan gives an output and its log-sum-exp, and these are merged.

The merge is exact: for disjoint key sets with outputs o_t and log-sum-exps l_t, the output over their union is
sum_t exp(l_t - l) o_t with l = log sum_t exp(l_t) (Hydragen, Juravsky et al. 2024, section 3.1).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outlay.models.config import DecoderConfig
from outlay.tree.cache import Cache
from outlay.tree.plan import KVSpan, PassPlan


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Computes attention with its log-sum-exp.

    Args:
        q: queries, [heads, n, head_dim].
        k: keys, [heads, length, head_dim].
        v: values, [heads, length, head_dim].
        bias: added to the scaled scores, [n, length]: 0, or -inf where a row does not see a key. Every row sees one.
        scale: multiplies the scores.
        softcap: caps the scaled scores to softcap * tanh(score / softcap).

    Returns:
        The output [heads, n, head_dim] in q's dtype, and the natural log-sum-exp [heads, n] in float32.
    """
    if softcap is None and q.device.type == "cpu":
        mask = None if bias is None else bias[None, None]
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
    """Returns `bias` [n, length] with its rows a multiple of 16 elements apart."""
    padded = bias.new_empty(len(bias), -(-bias.shape[1] // 16) * 16)[:, : bias.shape[1]]
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
    bias: Tensor | None  # [rows * group, length]


class TreeAttention:
    """The attention of one pass, as `Decoder` calls it: writes new keys and values, and reads what the plan says."""

    def __init__(
        self,
        cache: Cache,
        plan: PassPlan,
        config: DecoderConfig,
        dtype: torch.dtype = torch.float32,
        sinks: Sequence[Tensor | None] = (),
    ) -> None:
        """Prepares what all layers use; `dtype` is the queries', `sinks` are `Decoder.sinks`."""
        self._cache, self._config, self._dtype, self._sinks = cache, config, dtype, sinks
        self._count = len(plan.keys_seen)
        self._slots = _as_slice(plan.slots) or torch.tensor(plan.slots, device=cache.device)
        self._readers = {window: [self._reader(span) for span in spans] for window, spans in plan.kv_spans.items()}
        self._each_row_once = {window: plan.each_row_once(window) for window in plan.kv_spans}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, num_heads, head_dim], k and v [n, num_kv_heads, head_dim] -> output [n, num_heads, head_dim]."""
        self._cache.write(layer, self._slots, k, v)
        out, lse = self._attended(layer, q)
        sinks = self._sinks[layer] if self._sinks else None
        return out if sinks is None else beside_sinks(out, lse, sinks)

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
        every_row = len(span.rows) == self._count and span.rows == tuple(range(self._count))
        rows = None if every_row else torch.tensor(span.rows, device=device)
        keys = slice(span.start, span.start + span.length)
        return _Reader(keys if span.slots is None else _tensor(span.slots, torch.int64).to(device), rows, bias)


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
    contiguous = range(slots[0], slots[0] + len(slots))
    return slice(contiguous.start, contiguous.stop) if list(slots) == list(contiguous) else None
