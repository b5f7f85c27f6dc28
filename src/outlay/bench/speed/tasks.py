"""The tasks of the speed suite, and the speed of a decode phase from the times of its tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Decode:
    """Greedy decoding of a batch of prompts; no token ends a text.

    Measured is the decode phase: from when every sequence has its first token until the first of them has its last.
    """

    batch: int
    """Prompts that are decoded together."""
    threads: int
    prompt: int
    """Tokens of a prompt."""
    new: int
    """Tokens that each prompt gets."""
    busy: bool = False
    """Whether another program keeps a core busy meanwhile."""


@dataclass(frozen=True)
class Prompt:
    """Reads one prompt of `length` tokens, up to the logits of its last."""

    threads: int
    length: int = 1000


@dataclass(frozen=True)
class PassCost:
    """Passes over 1, 2, 4 ... `widest` new nodes, a chain after a prompt of `prompt` tokens, with all their logits."""

    threads: int
    widest: int = 128
    prompt: int = 512
    repeats: int = 3

    @property
    def widths(self) -> list[int]:
        """The widths, each twice the one before."""
        return [1 << power for power in range(self.widest.bit_length())]


@dataclass(frozen=True)
class ReadMemory:
    """Reads a buffer that is far larger than the caches."""

    threads: int
    megabytes: int = 512
    repeats: int = 3


@dataclass(frozen=True)
class PeakProducts:
    """Products of a linear layer whose weights and inputs stay in the caches, in each format of the kernels."""

    threads: int
    duration: float = 0.02
    """Seconds for which each format is measured."""


@dataclass(frozen=True)
class Likelihood:
    """Reads a text in chunks of `width` tokens, with the logits of all of them."""

    tokens: tuple[int, ...]
    width: int
    threads: int = 1


SpeedTask = Decode | Prompt | PassCost | ReadMemory | PeakProducts | Likelihood


def prompts(count: int, length: int, vocab: int, seed: int) -> list[list[int]]:
    """Returns `count` different prompts of `length` token ids; other prompts for another seed."""
    draw = random.Random(seed)
    return [[draw.randrange(vocab // 50, vocab - vocab // 50) for _ in range(length)] for _ in range(count)]


def chunks(task: Likelihood) -> list[tuple[int, ...]]:
    """Returns the tokens of a text as they are read."""
    return [task.tokens[begin : begin + task.width] for begin in range(0, len(task.tokens), task.width)]


def likelihood_values(task: Likelihood, logits: np.ndarray) -> dict[str, float]:
    """Returns the mean negative log-likelihood of a text's tokens after the first, `nats`; logits [tokens, vocab]."""
    rows = logits[:-1].astype(np.float64)
    largest = rows.max(1)
    total = largest + np.log(np.exp(rows - largest[:, None]).sum(1))
    return {"nats": float((total - rows[np.arange(len(rows)), list(task.tokens[1:])]).mean())}


def decode_values(times: Sequence[Sequence[float]]) -> dict[str, float]:
    """Returns the speed of a decode phase.

    Args:
        times: when each token of each sequence was there, in seconds.

    Returns:
        `tokens_per_second` over all sequences, and `step_ms`, the milliseconds in which every sequence gets one token.
    """
    start, end = max(each[0] for each in times), min(each[-1] for each in times)
    tokens = sum(start < time <= end for each in times for time in each)
    seconds = (end - start) / tokens
    return {"tokens_per_second": 1 / seconds, "step_ms": 1000 * seconds * len(times)}
