"""Lists of numbers to be sorted."""

from __future__ import annotations

import random
from typing import Any

SUMMARY = "a list of 3 to 8 numbers below 100, to be written in ascending order"


def make(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns `count` rows with `prompt` and `answer`."""
    return [_sort(random.Random(f"{seed}/{index}")) for index in range(count)]


def _sort(draw: random.Random) -> dict[str, Any]:
    numbers = [draw.randrange(100) for _ in range(draw.randint(3, 8))]
    return {"prompt": " ".join(map(str, numbers)), "answer": " ".join(map(str, sorted(numbers)))}
