"""What a comparison runs, as data that a manifest can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Declaration:
    """A comparison, before anything is loaded. Sampling options are for all methods that don't set their own."""

    methods: tuple[str, ...]
    """As they are typed, with options; each runs under each budget."""
    model: str
    budgets: tuple[str, ...] = ("",)
    """Caps on the ledger; "" is none."""
    reference: str | None = None
    """The method that the others are measured against; None is the first."""
    metric: str | None = None
    draft: str | None = None
    scorer: str | None = None
    """What rates texts, for the methods that take a scorer."""
    dtype: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    seeds: tuple[int, ...] = (0,)
    """Each prompt is answered once with each."""
    repeats: int = 3
    """How often each answer is measured."""
    batch: int = 1
    """Prompts that are answered together."""
    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    stop: tuple[str, ...] = ()
    raw: bool = False
    """Whether prompts are continued as they are, without the chat template."""
    trace: bool = False
    """Whether a trace of each method on each prompt is written too."""

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields by name, as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Declaration:
        """Makes the declaration that `as_dict` returned. Raises `TypeError` for fields that it does not have."""
        known = {field.name for field in fields(cls)}
        if unknown := values.keys() - known:
            raise TypeError(f"unknown: {', '.join(sorted(unknown))}")
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**options)
