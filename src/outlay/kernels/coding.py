"""Entropy coding with whole-number weights: the same stream on every instruction set, on any number of threads.

A row of weights [K] gives each symbol an interval of 2^24 (native/coder.cpp), with which an asymmetric numeral system
codes it. The streams are those of `constriction`: `AnsCoder` with `Categorical(weights, perfect=False)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outlay.kernels.native import AnsStreamStruct, check, library

ARITHMETIC = 1
"""Changes whenever any bit of any kernel does: what one number wrote, another can't read."""

SYMBOLS = 1 << 23
"""The most symbols of a row."""
NO_WEIGHT = "a row has no weight above 0"


class CoderWeights(NamedTuple):
    """The weights of rows of logits, floor(exp(logit - max) * 2^23)."""

    weights: Tensor
    """int32 [rows, vocab + spare]; those of the spare symbols are 0."""

    totals: Tensor
    """int64 [rows], the sums of the weights."""

    maxima: Tensor
    """float32 [rows], the largest logits."""

    exact: Tensor
    """float64 [rows], the sums before rounding, of exp(logit - max) * 2^23."""


def coder_weights(logits: Tensor, spare: int = 0) -> CoderWeights:
    """Returns the whole-number weights of logits.

    Args:
        logits: float32 [rows, vocab].
        spare: How many more symbols each row gets, of weight 0.

    Raises:
        ValueError: Where the logits are no float32 [rows, vocab].
    """
    if logits.dtype != torch.float32 or logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(f"expected float32 [rows, vocab], not {logits.dtype} {list(logits.shape)}")
    logits, (rows, vocab) = logits.contiguous(), logits.shape
    weights = torch.empty(rows, vocab + spare, dtype=torch.int32)
    totals, maxima = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    exact = torch.empty(rows, dtype=torch.float64)
    addresses = [each.data_ptr() for each in (weights, totals, maxima, exact)]
    check(library().outlay_coder_weights(logits.data_ptr(), rows, vocab, vocab + spare, *addresses))
    return CoderWeights(weights, totals, maxima, exact)


def intervals(weights: Tensor, symbols: Tensor) -> npt.NDArray[np.uint32]:
    """Returns where the interval of a symbol of each row begins, and its width.

    Args:
        weights: int32 [rows, K], none below 0, and in each row one above.
        symbols: int64 [rows].

    Returns:
        uint32 [rows, 2], in 2^24ths.

    Raises:
        ValueError: Where shapes, dtypes, weights or symbols do not fit.
    """
    weights = _checked(weights)
    rows, size = weights.shape
    symbols = symbols.contiguous()
    if symbols.dtype != torch.int64 or symbols.shape != (rows,):
        raise ValueError(f"expected a symbol for each of {rows} rows, not {symbols.dtype} {list(symbols.shape)}")
    if rows and not 0 <= int(symbols.min()) <= int(symbols.max()) < size:
        raise ValueError(f"expected symbols in 0..{size - 1}, not {int(symbols.min())}..{int(symbols.max())}")
    out = np.empty((rows, 2), np.uint32)
    check(library().outlay_intervals(weights.data_ptr(), rows, size, symbols.data_ptr(), out.ctypes.data))
    if rows and not out[:, 1].all():
        raise ValueError(NO_WEIGHT)
    return out


def ans_encode(coded: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Returns the words, uint32 [n], that hold symbols with these intervals, uint32 [symbols, 2].

    Raises:
        ValueError: Where an interval is empty or reaches beyond 2^24.
    """
    coded = np.ascontiguousarray(coded, np.uint32)
    if len(coded) and not (coded[:, 1].min() > 0 and int(coded.astype(np.int64).sum(1).max()) <= 1 << 24):
        raise ValueError("an interval is empty, or reaches beyond 2^24")
    words = np.empty(len(coded) + 2, np.uint32)
    return words[: library().outlay_ans_encode(coded.ctypes.data, len(coded), words.ctypes.data)].copy()


class AnsReader:
    """Streams of coded symbols, from which symbols are taken in the order in which they were given to `ans_encode`."""

    def __init__(self, streams: Sequence[npt.NDArray[np.uint32]]) -> None:
        """Opens streams of words, uint32 [n] each."""
        self._words = [np.ascontiguousarray(words, np.uint32) for words in streams]  # the structures hold bare pointers
        self._streams = (AnsStreamStruct * max(1, len(streams)))()
        for stream, words in zip(self._streams, self._words, strict=False):
            state, left = 0, len(words)
            while left and state < 1 << 32:
                left -= 1
                state = state << 32 | int(words[left])
            stream.state, stream.words, stream.left = state, words.ctypes.data, left

    def __len__(self) -> int:
        return len(self._words)

    def decode(self, weights: Tensor, streams: Tensor) -> Tensor:
        """Takes the next symbols, one row after the other.

        Args:
            weights: int32 [rows, K], none below 0, and in each row one above.
            streams: int64 [rows], the stream of each row.

        Returns:
            The symbols, int64 [rows]. Behind the end of a stream they mean nothing: see `ended`.

        Raises:
            ValueError: Where shapes, dtypes, weights or streams do not fit.
        """
        weights, streams = _checked(weights), streams.contiguous()
        rows, size = weights.shape
        if streams.dtype != torch.int64 or streams.shape != (rows,):
            raise ValueError(f"expected a stream for each of {rows} rows, not {streams.dtype} {list(streams.shape)}")
        if rows and not 0 <= int(streams.min()) <= int(streams.max()) < len(self):
            raise ValueError(f"expected streams in 0..{len(self) - 1}")
        symbols = torch.empty(rows, dtype=torch.int64)
        check(
            library().outlay_ans_decode(
                self._streams, streams.data_ptr(), weights.data_ptr(), rows, size, symbols.data_ptr()
            )
        )
        if rows and int(symbols.min()) < 0:
            raise ValueError(NO_WEIGHT)
        return symbols

    def ended(self, stream: int) -> bool:
        """Tells whether all of a stream's words were read, and its state is the one that it was begun with."""
        return bool(self._streams[stream].left == 0 and self._streams[stream].state == 0)


def _checked(weights: Tensor) -> Tensor:
    if weights.dtype != torch.int32 or weights.ndim != 2 or not 2 <= weights.shape[1] <= SYMBOLS:
        raise ValueError(
            f"expected int32 weights [rows, 2 to {SYMBOLS} symbols], not {weights.dtype} {list(weights.shape)}"
        )
    return weights.contiguous()
