"""Copies with an edit: a line of words, one of them to be replaced."""

from __future__ import annotations

import random
from typing import Any

SUMMARY = "a line of words to copy with one of them replaced"
SYLLABLES = ("ba", "do", "fe", "gi", "ka", "lu", "mo", "ne", "pi", "ra", "su", "to", "vi", "wa", "ze")


def make(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns `count` rows with `prompt` and `answer`."""
    return [_edit(random.Random(f"{seed}/{index}")) for index in range(count)]


def _edit(draw: random.Random) -> dict[str, Any]:
    words = list(dict.fromkeys(_word(draw) for _ in range(draw.randint(4, 10))))
    place, fresh = draw.randrange(len(words)), _word(draw)
    edited = [fresh if index == place else word for index, word in enumerate(words)]
    return {"prompt": f"{words[place]}>{fresh}: {' '.join(words)}", "answer": " ".join(edited)}


def _word(draw: random.Random) -> str:
    return "".join(draw.choices(SYLLABLES, k=draw.randint(1, 3)))
