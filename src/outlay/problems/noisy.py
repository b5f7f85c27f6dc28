"""A dictionary whose phrases are written with noise: no letter is certain, but the most probable text is."""

from __future__ import annotations

from typing import Any

from outlay.problems.ambiguous import Dictionary

SUMMARY = "keys of a dictionary, each with two phrases, some letters wrong"
DICTIONARY = Dictionary(weights=(0.7, 0.3), noise=(0.05, 0.1, 0.15, 0.2, 0.1, 0.25))


def make(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns `count` rows with `prompt`, four keys, and `answer`, 24 letters."""
    return [DICTIONARY.row(index, seed) for index in range(count)]
