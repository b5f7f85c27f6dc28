"""Passages side by side, as a draft head is trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outlay.batching import Buckets, DynamicBucketSampler
from outlay.batching.buckets import BUCKETS
from outlay.train.corpus import Passage

BATCHES_OF_A_BUCKET = 8  # at least, so that few batches are not full and lengths still mix
CONTEXT = 128  # tokens before the model's own text that a draft head reads in training; a bound on time, not tuned


@dataclass(frozen=True)
class Batch:
    """Padded passages.

    At place t stand the token e_t and the hidden states f_{t-1} (`before`) and f_t (`hidden_states`) of the target.
    """

    tokens: Tensor
    """int64 [batch, time]."""
    before: Tensor
    """float32 [batch, time, hidden_size]: f_{t-1} at place t, zeros at the first."""
    hidden_states: Tensor
    """float32 [batch, time, hidden_size]: f_t at place t."""
    own: Tensor
    """bool [batch, time]: the next token is the model's own, and f_t is known."""


def as_batch(passages: Sequence[Passage]) -> Batch:
    """Pads passages into a batch, each with up to `CONTEXT` tokens before the model's own text."""
    time, hidden = max(map(_length, passages)), passages[0].hidden_states.shape[1]
    tokens = torch.zeros(len(passages), time, dtype=torch.int64)
    before, hidden_states = (torch.zeros(len(passages), time, hidden) for _ in range(2))
    own = torch.zeros(len(passages), time, dtype=torch.bool)
    for row, passage in enumerate(passages):
        start, n = max(0, passage.begin - CONTEXT), _length(passage)
        tokens[row, :n], hidden_states[row, :n] = passage.tokens[start:], passage.hidden_states[start:]
        before[row, 1:n] = passage.hidden_states[start : start + n - 1]
        own[row, passage.begin - start : n - 1] = True
    return Batch(tokens, before, hidden_states, own)


def batches(passages: Sequence[Passage], size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Groups passages of like length into batches, drawn from buckets in a random order.

    Args:
        passages: The passages to group.
        size: Tokens of a batch, padding included; a longer passage is a batch of its own.
        seed: Seed of the order.
        epoch: Number of the epoch; each has an order of its own.

    Yields:
        The indices of a batch's passages.
    """
    lengths = [_length(passage) for passage in passages]
    count = max(1, min(BUCKETS, sum(lengths) // (BATCHES_OF_A_BUCKET * size), len(lengths)))
    buckets = Buckets.fit_1d(lengths, count)
    sizes = {place: max(1, size // int(edge.input)) for place, edge in enumerate(buckets)}
    yield from DynamicBucketSampler(lengths, buckets, sizes, buffer=len(lengths), seed=seed, epoch=epoch)


def own_tokens(passages: Sequence[Passage]) -> int:
    """Counts the tokens that the model wrote itself."""
    return sum(len(passage.tokens) - passage.begin for passage in passages)


def frequent_tokens(passages: Sequence[Passage], count: int) -> Tensor:
    """Returns the `count` tokens that the model writes most, int64 in ascending order; fewer if it writes fewer."""
    counts: Counter[int] = Counter()
    for passage in passages:
        counts.update(passage.tokens[passage.begin :].tolist())
    common = sorted(counts, key=lambda token: (-counts[token], token))[:count]
    return torch.tensor(sorted(common))


def _length(passage: Passage) -> int:
    return len(passage.tokens) - max(0, passage.begin - CONTEXT)
