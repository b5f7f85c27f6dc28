"""Checkpoints of a training, so that one that was killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outlay.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Checkpoint:
    """The weights and the optimizer of a training, kept in a file; without a path nothing is kept."""

    def __init__(
        self,
        path: Path | None,
        recipe: DataclassInstance,
        weights: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """`weights` are the tensors that are trained, by name: `resume` copies into them."""
        self._path, self._recipe = path, json.dumps(asdict(recipe))
        self._weights, self._optimizer = weights, optimizer

    @torch.no_grad()
    def resume(self) -> int:
        """Restores what was kept.

        Returns:
            The step to go on with, 0 where nothing was kept.

        Raises:
            UsageError: The checkpoint is of another recipe.
        """
        if self._path is None or not self._path.exists():
            return 0
        held = torch.load(self._path, weights_only=True)
        if held["recipe"] != self._recipe:
            raise UsageError(f"{self._path} is of another recipe; remove it, or train into another file")
        for name, weight in self._weights.items():
            weight.copy_(held["weights"][name])
        self._optimizer.load_state_dict(held["optimizer"])
        return int(held["step"])

    def save(self, step: int) -> None:
        """Keeps the state after `step` steps, whole or not at all."""
        if self._path is None:
            return
        part = self._path.with_suffix(".part")
        held = {"recipe": self._recipe, "step": step, "weights": dict(self._weights)}
        torch.save({**held, "optimizer": self._optimizer.state_dict()}, part)
        part.replace(self._path)

    def remove(self) -> None:
        """Removes the file at the end of the training."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
