"""How a commit filter is fitted, in our way or in the published one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from outlay.errors import UsageError


@dataclass(frozen=True)
class FilterRecipe:
    """How a filter is fitted. `published` gives the paper's recipe."""

    block: int = 0
    """Positions of a block; 0: the model's own, 32 for a model without."""
    length: int = 256
    """Positions of the canvas behind each prompt."""
    hidden: int = 32
    """Width of the layer between; 0: a single layer (logistic regression, the paper's ablation)."""
    lr: float = 3e-3
    """Learning rate of AdamW."""
    epochs: int = 300
    """Times that the records are gone through, at most."""
    patience: int = 30
    """Epochs after which it stops where the loss on held-out records has not fallen."""
    batch: int = 512
    """Records of a step; 0: all of them, as published."""
    paths: Literal["both", "oracle"] = "both"
    """Whose rounds are learned from: the oracle's and the reference's, or, as published, the oracle's alone."""
    positions: Literal["masked", "all"] = "masked"
    """Which positions count in the loss: those that can be filled, or, as published, filled ones too."""
    split: Literal["prompt", "record"] = "prompt"
    """What is held out: whole prompts, or, as published, records, whose neighbours are nearly the same."""
    agreement: float | None = 0.99
    """Share of held-out prompts whose text must be the reference's, by which the score is chosen from which the filter
    fills; None: 0.96, as published."""
    seed: int = 0
    """Fixes the weights at the start, what is held out, and the order of the records."""

    def __post_init__(self) -> None:
        for name, least in (("block", 0), ("length", 1), ("hidden", 0), ("epochs", 1), ("patience", 1), ("batch", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be {least} or more, not {getattr(self, name)}")
        if self.agreement is not None and not 0 < self.agreement <= 1:
            raise UsageError(f"agreement must be above 0 and at most 1, not {self.agreement}")
        if self.agreement is not None and self.split == "record":
            raise UsageError("the score is chosen on prompts that were held out; take split=prompt, or agreement=None")

    @classmethod
    def published(cls, **changes: Any) -> FilterRecipe:
        """Returns the recipe of the authors' code."""
        given: dict[str, Any] = {
            "epochs": 40_000, "patience": 2_000, "batch": 0, "paths": "oracle", "positions": "all", "split": "record",
            "agreement": None,
        }  # fmt: skip
        return cls(**given | changes)
