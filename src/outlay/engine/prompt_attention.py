"""Attention of a prompt that a cache policy reads whole: in each layer the rows that it chooses attend to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from outlay.attend.policy import Hold, Keeper
from outlay.models.config import DecoderConfig
from outlay.models.decoder import Decoder
from outlay.tree.attention import attend, beside_sinks, row_scores
from outlay.tree.cache import Cache, dequantize, quantize
from outlay.tree.stored import HeldKeys, Part

MakePart = Callable[[Hold, HeldKeys], Part]
ROWS = 256  # that attend at a time, which bounds the memory of their mask


class PromptAttention:
    """What a decoder calls for each layer of the pass over one prompt.

    Attributes:
        attention: of each watched row what it reads, float32 [layers, row + 1]; 0 for a row that does not attend.
        attending: how many rows attend in each layer.
        pairs: how many pairs of a query and a key each layer went over.
        dense_pairs: how many it has where every token attends.
    """

    def __init__(
        self, decoder: Decoder, cache: Cache, keeper: Keeper, make: MakePart, watched: Sequence[int] = ()
    ) -> None:
        """Begins.

        Args:
            decoder: The model.
            cache: Whose format keys and values are rounded to.
            keeper: What decides.
            make: Makes what is held of keys and values.
            watched: Rows of which it is recorded what they read.
        """
        self._config, self._sinks, self._cache, self._keeper = decoder.config, decoder.sinks, cache, keeper
        self._make = make
        self._layers: list[list[Part] | HeldKeys] = []  # what is held, or all keys where that is said at the end
        self._count = 0
        self._rows: Tensor | None = None
        self._watched = watched
        self.attention = [torch.zeros((decoder.config.num_layers, row + 1), device=cache.device) for row in watched]
        self.attending: list[int] = []
        self.pairs: list[int] = []
        self.dense_pairs: list[int] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, num_heads, head_dim], k and v [n, num_kv_heads, head_dim] -> output [n, num_heads, head_dim]."""
        n, window = len(q), self._config.windows[layer]
        k, v = self._as_held(k), self._as_held(v)
        choice = self._keeper.prompt(layer, q, k, v)
        rows = choice.rows
        if rows is not None and len(rows) == n:
            rows = None
        positions = torch.arange(n, device=q.device) if rows is None else rows
        keys, values = k[positions].transpose(0, 1), v[positions].transpose(0, 1)
        attended, lse = causal(q[positions], keys, values, positions, window, self._config)
        sinks = self._sinks[layer] if self._sinks else None
        if sinks is not None:
            attended = beside_sinks(attended, lse, sinks)
            lse = torch.logaddexp(lse, sinks)
        self._watch(layer, q, keys, positions, lse)
        self._rows = rows
        every = torch.arange(n, device=q.device)
        held = HeldKeys(every, k.transpose(0, 1), v.transpose(0, 1))
        self._layers.append(held if choice.holds is None else self._parts(choice.holds, held))
        self._count = n
        self.attending.append(len(positions))
        self.pairs.append(_pairs(positions, window))
        self.dense_pairs.append(_pairs(every, window))
        if rows is None:
            return attended.to(q.dtype)
        out = torch.zeros_like(q)
        out[rows] = attended.to(q.dtype)
        return out

    def resting(self, layer: int) -> Tensor | None:
        """Returns which rows take nothing from attention in the layer that was computed last, bool [n], if any."""
        if self._rows is None:
            return None
        resting = torch.ones(self._count, dtype=torch.bool, device=self._rows.device)
        resting[self._rows] = False
        return resting

    def layers(self) -> list[list[Part]]:
        """Returns what each layer holds, when all were computed."""
        if any(isinstance(layer, HeldKeys) for layer in self._layers):
            said = self._keeper.end_of_prompt()
            for index, layer in enumerate(self._layers):
                if isinstance(layer, HeldKeys):
                    self._layers[index] = self._parts(said[index], layer)
        return [layer for layer in self._layers if not isinstance(layer, HeldKeys)]

    def _parts(self, holds: Sequence[Hold], held: HeldKeys) -> list[Part]:
        return [self._make(hold, held) for hold in holds if len(hold.positions)]

    def _as_held(self, x: Tensor) -> Tensor:
        """Returns keys or values as they are read from the cache, in their own dtype."""
        if self._cache.group:
            return dequantize(*quantize(x, self._cache.group)).to(x.dtype)
        return x.to(self._cache.dtype).to(x.dtype)

    def _watch(self, layer: int, q: Tensor, keys: Tensor, positions: Tensor, lse: Tensor) -> None:
        """Writes what watched rows read of keys [num_kv_heads, p, head_dim] at positions [p]; lse [p, num_heads]."""
        window = self._config.windows[layer]
        for row, out in zip(self._watched, self.attention, strict=True):
            place = (positions == row).nonzero()[:, 0].tolist()
            if place:
                weights = torch.exp(row_scores(q[row], keys, self._config) - lse[place[0]][:, None]).mean(0)
                seen = positions <= row
                if window is not None:
                    seen &= positions > row - window
                out[layer, positions[seen]] = weights[seen]


def causal(
    q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, window: int | None, config: DecoderConfig
) -> tuple[Tensor, Tensor]:
    """Computes attention of tokens over those of them up to themselves.

    Args:
        q: Queries, [p, num_heads, head_dim].
        keys: [num_kv_heads, p, head_dim].
        values: [num_kv_heads, p, head_dim].
        positions: Their positions, int64 [p], ascending.
        window: How many positions a token sees; None for all.
        config: The model's shape.

    Returns:
        The output [p, num_heads, head_dim], and its log-sum-exp, float32 [p, num_heads].
    """
    heads, group = config.num_kv_heads, config.num_heads // config.num_kv_heads
    outs, sums = [], []
    for first in range(0, len(q), ROWS):
        some, end = q[first : first + ROWS], min(first + ROWS, len(q))
        at = positions[first:end]
        hidden = positions[:end] > at[:, None]
        if window is not None:
            hidden |= positions[:end] <= at[:, None] - window
        bias = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, -torch.inf)
        folded = some.view(len(some), heads, group, -1).transpose(0, 1).reshape(heads, len(some) * group, -1)
        k, v, bias = keys[:, :end].contiguous(), values[:, :end].contiguous(), bias.repeat_interleave(group, 0)
        out, lse = attend(folded, k, v, bias, config.attention_scale, config.attention_softcap)
        outs.append(out.reshape(heads, len(some), group, -1).transpose(0, 1).reshape(len(some), config.num_heads, -1))
        sums.append(lse.reshape(heads, len(some), group).transpose(0, 1).reshape(len(some), config.num_heads))
    return torch.cat(outs), torch.cat(sums)


def _pairs(positions: Tensor, window: int | None) -> int:
    """Returns how many pairs of a query and a key causal attention over these positions [p] has."""
    count = len(positions)
    hidden = 0 if window is None else int(torch.searchsorted(positions, positions - window, right=True).sum())
    return count * (count + 1) // 2 - hidden
