"""A dictionary whose keys have four phrases each, of different probability: a text of any of them is right.

Letters that are chosen at once may be of different phrases. Such a slot is bad, and it can be counted.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

SUMMARY = "keys of a dictionary, each with four phrases; one is drawn"
LETTERS = "abcdefghijklmnopqrst"
KEYS = "ABCDEFGHIJKLMNOP"


@dataclass(frozen=True)
class Dictionary:
    """Keys, each with its own random phrases."""

    weights: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)
    """The probability of each phrase of a key."""
    noise: tuple[float, ...] = (0.0,) * 6
    """For each letter of a phrase, the probability that a random one is written in its place."""
    asked: int = 4
    """Keys of a question."""
    seed: int = 0
    """What the phrases are drawn from."""

    @cached_property
    def phrases(self) -> dict[str, tuple[str, ...]]:
        """The phrases of each key, the most probable first."""
        draw = random.Random(f"dictionary/{self.seed}")
        return {key: tuple(self._phrase(draw) for _ in self.weights) for key in KEYS}

    def _phrase(self, draw: random.Random) -> str:
        return "".join(draw.choices(LETTERS, k=len(self.noise)))

    def row(self, index: int, seed: int | str) -> dict[str, Any]:
        """Returns problem number `index`: `prompt`, the keys, and `answer`, a phrase drawn for each."""
        draw = random.Random(f"dictionary/{seed}/{index}")
        keys = draw.choices(KEYS, k=self.asked)
        clean = "".join(draw.choices(self.phrases[key], self.weights)[0] for key in keys)
        rates = self.noise * self.asked
        answer = [
            draw.choice(LETTERS) if draw.random() < rate else letter for letter, rate in zip(clean, rates, strict=True)
        ]
        return {"prompt": "".join(keys), "answer": "".join(answer)}

    def slots(self, prompt: str, text: str) -> list[int]:
        """Returns which phrase of its key each slot of a text holds, -1 for none of them."""
        length = len(self.noise)
        slots = [text[place * length : (place + 1) * length] for place in range(len(prompt))]
        known = [self.phrases.get(key, ()) for key in prompt]
        return [phrases.index(slot) if slot in phrases else -1 for slot, phrases in zip(slots, known, strict=True)]


DICTIONARY = Dictionary()


def make(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns `count` rows with `prompt`, four keys, and `answer`, 24 letters."""
    return [DICTIONARY.row(index, seed) for index in range(count)]
