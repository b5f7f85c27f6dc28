"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

ShowProgress = Callable[[str, int, int], None]
"""Takes the phase, how much of it is done, and its total, 0 where that is not known."""


def silent(phase: str, done: int, total: int) -> None:
    """Shows nothing."""
