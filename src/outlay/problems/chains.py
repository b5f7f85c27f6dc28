"""The chains of `arithmetic` with 6 to 8 operations: what `outlay/tiny-reasoner` was trained on, for searches."""

from __future__ import annotations

from typing import Any

from outlay.problems import arithmetic

SUMMARY = "the chains of arithmetic, of 6 to 8 operations: long enough that a search pays"
OPERATIONS = (6, 8)


def make(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns `count` rows, as `arithmetic.make` does."""
    return arithmetic.make(count, seed, OPERATIONS)
