"""What the tests of models share: a plain cache with dense attention, and tiny checkpoints made by `transformers`."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from outlay.models.decoder import Decoder


class DenseCache:
    """One sequence's keys and values, and the plainest attention over them, for comparison."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.config = decoder, decoder.config
        self.keys: list[list[Tensor]] = [[] for _ in range(self.config.num_layers)]
        self.values: list[list[Tensor]] = [[] for _ in range(self.config.num_layers)]
        self.length = 0

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        config = self.config
        self.keys[layer].append(k.clone())
        self.values[layer].append(v.clone())
        groups = config.num_heads // config.num_kv_heads
        keys = torch.cat(self.keys[layer]).repeat_interleave(groups, dim=1)
        values = torch.cat(self.values[layer]).repeat_interleave(groups, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q.float(), keys.float()) * config.attention_scale
        if config.attention_softcap is not None:
            scores = torch.tanh(scores / config.attention_softcap) * config.attention_softcap
        places = torch.arange(len(keys))
        behind = places[-len(q) :, None] - places
        hidden = behind < 0
        if config.windows[layer] is not None:
            hidden |= behind >= config.windows[layer]
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values.float()).to(q.dtype)


def logits(decoder: Decoder, tokens: Sequence[int], chunks: Sequence[int] = ()) -> Tensor:
    """The logits of one sequence, passed whole or in chunks of the given lengths (and the rest)."""
    cache, out = DenseCache(decoder), []
    sizes = [*chunks, len(tokens) - sum(chunks)]
    for part in torch.tensor(tokens).split(sizes):
        positions = torch.arange(cache.length, cache.length + len(part))
        out.append(decoder.forward(part, positions, cache.attend))
        cache.length += len(part)
    return torch.cat(out)


def mixed_logits(decoder: Decoder, first: Sequence[int], second: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The logits of two sequences whose tokens alternate in one flat pass, as far as the shorter goes."""
    order = torch.tensor([x for pair in zip(range(len(first)), range(len(second)), strict=False) for x in pair])
    mine = torch.arange(len(order)) % 2 == 0
    caches = DenseCache(decoder), DenseCache(decoder)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        for cache, rows in zip(caches, (mine, ~mine), strict=True):
            out[rows] = cache.attend(layer, q[rows], k[rows], v[rows])
        return out

    flat = torch.tensor([(first if even else second)[at] for at, even in zip(order, mine, strict=True)])
    result = decoder.forward(flat, order, attend)
    return result[mine], result[~mine]


class Dense:
    """What is above, for tests to ask for by name."""

    Cache = DenseCache
    logits = staticmethod(logits)
    mixed_logits = staticmethod(mixed_logits)


@pytest.fixture
def dense() -> type[Dense]:
    return Dense


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
