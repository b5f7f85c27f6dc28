"""Look-ups: pairs of key and value, and a key to look up. The input is long, the answer short."""

from __future__ import annotations

import random
import string
from typing import Any

SUMMARY = "24 pairs like kd=83 and a key to look up; the answer is its value"
PAIRS = 24


def make(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns `count` rows with `prompt` and `answer`."""
    return [lookup(random.Random(f"{seed}/{index}"), PAIRS) for index in range(count)]


def lookup(draw: random.Random, pairs: int) -> dict[str, Any]:
    """Returns a look-up among a number of pairs."""
    keys = [first + second for first in string.ascii_lowercase for second in string.ascii_lowercase]
    held = {key: f"{draw.randrange(100):02d}" for key in draw.sample(keys, pairs)}
    asked = draw.choice(list(held))
    return {"prompt": f"{' '.join(f'{key}={value}' for key, value in held.items())} {asked}?", "answer": held[asked]}
