"""A comparison that is asked for: what is declared, and on which prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.compare.declaration import Declaration
from outlay.compare.items import Item


@dataclass(frozen=True)
class Task:
    """`source` is where the prompts are from; `again` the manifest of a comparison that this one repeats."""

    declaration: Declaration
    items: Sequence[Item]
    source: str
    again: Mapping[str, Any] | None = None
