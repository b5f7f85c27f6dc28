"""A comparison: what is declared, and on which prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.compare.declaration import Declaration
from outlay.compare.items import Item


@dataclass(frozen=True)
class Comparison:
    """What is compared, on which prompts."""

    declaration: Declaration
    items: Sequence[Item]
    source: str
    """Where the prompts are from."""
    repeats: Mapping[str, Any] | None = None
    """The manifest of the comparison that this one repeats."""
