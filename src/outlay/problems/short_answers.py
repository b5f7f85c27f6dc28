"""Four kinds of problems with short answers in turn: dates, edits, look-ups and lists to be sorted.

Look-ups are among 2 to 24 pairs: a network that learns finds out on few how it is done among many.
"""

from __future__ import annotations

import random
from typing import Any

from outlay.errors import UsageError
from outlay.problems import dates, edits, retrieval, sorting

SUMMARY = "dates, edits, look-ups among 2 to 24 pairs, and sorting, in turn"
OTHERS = (dates, edits, sorting)


def make(count: int, seed: int, pairs: int = retrieval.PAIRS) -> list[dict[str, Any]]:
    """Returns `count` rows with `prompt` and `answer`; look-ups are among 2 to `pairs` pairs.

    Raises:
        UsageError: `pairs` is not from 2 to 24.
    """
    if not 2 <= pairs <= retrieval.PAIRS:
        raise UsageError(f"short_answers look up among 2 to {retrieval.PAIRS} pairs, not {pairs}")
    each = -(-count // (len(OTHERS) + 1))
    lookups = [_lookup(random.Random(f"{seed}/short/{index}"), pairs) for index in range(each)]
    rows = [row for turn in zip(*(kind.make(each, seed) for kind in OTHERS), lookups, strict=True) for row in turn]
    return rows[:count]


def _lookup(draw: random.Random, pairs: int) -> dict[str, Any]:
    return retrieval.lookup(draw, draw.randint(2, pairs))
