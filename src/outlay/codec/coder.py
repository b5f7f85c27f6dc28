"""Entropy coding with any sequential model of data: language models, circuits, picture codecs, a class of your own.

A model tells the distribution of the next symbol as whole-number weights and is then told the symbol, so coding and
decoding ask it the same questions in the same order. Lanes are sequences side by side, which a model may compute
together. They share one stream of the coder ("batch") or have one each ("sample").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outlay import kernels
from outlay.codec.container import CorruptStream
from outlay.errors import UsageError

CODER = "ans24"
Stream = Literal["sample", "batch"]
Words = npt.NDArray[np.uint32]


class SequentialModel(Protocol):
    """A model of sequences of symbols 0..K-1. Its weights must have the same bits wherever it is asked."""

    @property
    def fingerprint(self) -> str:
        """Identifies the model: files that it coded are refused for another."""

    def begin(self, lanes: int) -> Any:
        """Returns the state of `lanes` sequences before their first symbol."""

    def next_pmf(self, state: Any) -> Tensor:
        """Returns the weights of the next symbol of each lane: int32 [lanes, K], none below 0, one above 0 in each."""

    def push(self, state: Any, symbols: Tensor) -> None:
        """Tells the next symbol of each lane, int64 [lanes]."""


@runtime_checkable
class KnownSymbols(Protocol):
    """What a model may have besides: all tables of known symbols at once, where that is quicker than one by one."""

    def known_pmfs(self, symbols: Tensor) -> Iterable[Tensor]:
        """Yields what `next_pmf` gives before each of the symbols, int64 [lanes, steps], in order."""


def encode(model: SequentialModel, symbols: Tensor, stream: Stream = "sample") -> list[Words]:
    """Codes sequences.

    Args:
        model: The model.
        symbols: int64 [lanes, steps].
        stream: Whether each lane has its own stream ("sample"), or all share one ("batch"), step by step.

    Returns:
        The words of each stream.

    Raises:
        UsageError: Where the model gives weights that can't be coded, or the kernels are not available.
    """
    refuse_without_kernels()
    lanes, steps = symbols.shape
    found = np.empty((steps, lanes, 2), np.uint32)
    for step, weights in enumerate(_tables(model, symbols)):
        try:
            found[step] = kernels.intervals(_checked(weights), symbols[:, step])
        except ValueError as error:
            raise UsageError(f"step {step}: {error}") from None
    if stream == "batch":
        return [kernels.ans_encode(found.reshape(-1, 2))]
    return [kernels.ans_encode(np.ascontiguousarray(found[:, lane])) for lane in range(lanes)]


def decode(model: SequentialModel, streams: Sequence[Words], lanes: int, steps: int) -> Tensor:
    """Decodes what `encode` coded.

    Args:
        model: The model that coded it.
        streams: One for each lane, or one for all.
        lanes: How many sequences there are.
        steps: How many symbols each has.

    Returns:
        int64 [lanes, steps].

    Raises:
        CorruptStream: Where the streams don't hold that many symbols of this model.
    """
    refuse_without_kernels()
    if lanes and len(streams) not in (1, lanes):
        raise ValueError(f"expected 1 or {lanes} streams, not {len(streams)}")
    reader, state = kernels.AnsReader(streams), model.begin(lanes)
    of_lane = torch.arange(lanes) if len(streams) == lanes else torch.zeros(lanes, dtype=torch.int64)
    symbols = torch.empty(lanes, steps, dtype=torch.int64)
    for step in range(steps):
        symbols[:, step] = reader.decode(_checked(model.next_pmf(state)), of_lane)
        model.push(state, symbols[:, step])
    unread = next((place for place in range(len(streams)) if not reader.ended(place)), None)
    if unread is not None:
        raise CorruptStream("it holds other symbols than it should", unread)
    return symbols


def ideal_bits(model: SequentialModel, symbols: Tensor) -> float:
    """Returns the bits of sequences, int64 [lanes, steps], under a model's weights, before they are made intervals."""
    total = 0.0
    for step, weights in enumerate(_tables(model, symbols)):
        exact = weights.double()
        picked = exact.gather(1, symbols[:, step, None])[:, 0]
        total += float((exact.sum(1) / picked).log2().sum())
    return total


def pack_words(words: Words) -> bytes:
    """Returns a stream's words as bytes, the highest zeros of the last word left out."""
    return words.astype("<u4").tobytes().rstrip(b"\0")


def unpack_words(data: bytes) -> Words:
    """Returns the words of a stream's bytes."""
    return np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)


def interval_bits(coded: Words) -> float:
    """Returns what symbols with these intervals, uint32 [symbols, 2], cost together, in bits."""
    return float((24 - np.log2(coded[:, 1].astype(np.float64))).sum())


def refuse_without_kernels() -> None:
    """Raises `UsageError` where the native kernels, which give the same bits everywhere, are not available."""
    if not kernels.available():
        raise UsageError(
            "compressing with a model needs the native kernels, which give the same bits on every machine: install a "
            "wheel, or build with a C++ compiler; xz works without"
        )


def _tables(model: SequentialModel, symbols: Tensor) -> Iterator[Tensor]:
    """Yields the weights before each step of known symbols, int64 [lanes, steps]."""
    if isinstance(model, KnownSymbols):
        yield from model.known_pmfs(symbols)
        return
    state = model.begin(len(symbols))
    for step in range(symbols.shape[1]):
        yield model.next_pmf(state)
        model.push(state, symbols[:, step])


def _checked(weights: Tensor) -> Tensor:
    if weights.numel() and int(weights.min()) < 0:
        raise UsageError("a model gives weights of 0 or more")
    return weights
