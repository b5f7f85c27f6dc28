"""The tasks of the hydragen suite. Each is done with one thread and measured in processor time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Texts:
    """`rows` texts of `new` tokens after one prefix of `prefix` tokens, all at once; no token ends a text."""

    rows: int
    prefix: int
    new: int


@dataclass(frozen=True)
class AttentionAlone:
    """Attention of `rows` rows over one prefix of `prefix` tokens, in one layer."""

    rows: int
    prefix: int
    repeats: int = 4


@dataclass(frozen=True)
class Planting:
    """A request is planted on a prefix of `prefix` tokens that is in the cache."""

    prefix: int
    repeats: int = 20


@dataclass(frozen=True)
class Sharing:
    """From how many shared keys on it pays to read them apart, by rows."""


HydragenTask = Texts | AttentionAlone | Planting | Sharing


def prefix_of(length: int, vocab: int) -> list[int]:
    """Returns a prefix of token ids, the same each time."""
    draw = random.Random(length)
    return [draw.randrange(vocab // 50, vocab - vocab // 50) for _ in range(length)]


def decode_values(times: Sequence[float], task: Texts) -> dict[str, float]:
    """Returns the speed of decoding: `tokens_per_second` and `step_ms`.

    Args:
        times: When each step began, in seconds: those before the last `new` - 1 are not counted.
        task: What was decoded.
    """
    steps = task.new - 2
    seconds = (times[-1] - times[-1 - steps]) / steps
    return {"tokens_per_second": task.rows / seconds, "step_ms": 1000 * seconds}


def least_ms(body: Callable[[], object], repeats: int) -> float:
    """Returns the least milliseconds of processor time that a call takes; the first one warms up."""
    taken = []
    for _ in range(repeats + 1):
        started = time.process_time()
        body()
        taken.append(1000 * (time.process_time() - started))
    return min(taken[1:])
