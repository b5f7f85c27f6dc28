"""Tokens drawn from logits, and the probabilities that they are drawn with, in one native call.

Weights are float32 and their sums float64, added in one order: the same logits give the same token on every instruction
set, on any number of threads.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ctypes import Array, byref
from typing import NamedTuple

import torch
from torch import Tensor

from outlay.kernels.native import DrawStruct, SamplingStruct, check, library


class Truncation(NamedTuple):
    """Temperature and truncation, with the meaning that `transformers` gives to each option."""

    temperature: float
    """Above 0."""

    top_k: int | None = None
    """Keeps the k largest logits, and what equals the least of them."""

    top_p: float | None = None
    """Keeps the most probable tokens until they have this much probability, the lower one first among equals."""

    min_p: float | None = None
    """Keeps the tokens at least this probable relative to the most probable one."""

    @property
    def struct(self) -> SamplingStruct:
        """The options as native calls take them."""
        top_k = min(self.top_k or 0, 2**31 - 1)
        return SamplingStruct(self.temperature, top_k, 1.0 if self.top_p is None else self.top_p, self.min_p or 0.0)


class TokenDraw(NamedTuple):
    """A token to draw: the cumulative sum of the probabilities, in the order of the tokens, is inverted at a number."""

    truncation: Truncation

    uniform: float
    """In [0, 1)."""


def draw(logits: Tensor, draws: Sequence[TokenDraw]) -> list[int]:
    """Returns a token drawn from each row of logits.

    Args:
        logits: float32 [rows, vocab].
        draws: How, for each row.

    Raises:
        ValueError: Where shapes or dtypes do not fit.
    """
    rows, vocab = _checked(logits).shape
    if len(draws) != rows:
        raise ValueError(f"expected {rows} draws, not {len(draws)}")
    tokens = array("q", bytes(8 * rows))
    logits = logits.contiguous()
    structs = draw_structs(list(enumerate(draws)))
    check(library().outlay_draw(logits.data_ptr(), vocab, structs, rows, tokens.buffer_info()[0]))
    return tokens.tolist()


def probs(logits: Tensor, truncation: Truncation) -> Tensor:
    """Returns the probabilities, float32 [rows, vocab], that temperature and truncation make of logits [rows, vocab].

    Raises:
        ValueError: Where the logits are no float32 [rows, vocab].
    """
    rows, vocab = _checked(logits).shape
    logits, out = logits.contiguous(), torch.empty(rows, vocab)
    check(library().outlay_probs(logits.data_ptr(), rows, vocab, byref(truncation.struct), out.data_ptr()))
    return out


def draw_structs(draws: Sequence[tuple[int, TokenDraw]]) -> Array[DrawStruct]:
    """Returns draws, each with its row, as native calls take them."""
    return (DrawStruct * len(draws))(
        *(DrawStruct(row, truncation.struct, uniform) for row, (truncation, uniform) in draws)
    )


def _checked(logits: Tensor) -> Tensor:
    if logits.dtype != torch.float32 or logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(f"expected float32 [rows, vocab], not {logits.dtype} {list(logits.shape)}")
    return logits
