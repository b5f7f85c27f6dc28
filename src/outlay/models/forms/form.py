"""What a stored form offers: shapes and matrices of modules among a folder's tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from outlay.errors import UsageError
from outlay.models.stored import StoredMatrix


class Tensors(Protocol):
    """The tensors of a folder."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns a tensor's shape; None if there is none of that name."""

    def tensor(self, name: str) -> Tensor:
        """Returns a tensor as it is stored."""


@dataclass(frozen=True)
class Held:
    """Tensors that are in memory, as a form reads them."""

    found: Mapping[str, Tensor]
    """By name."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns a tensor's shape; None if there is none of that name."""
        return tuple(self.found[name].shape) if name in self.found else None

    def tensor(self, name: str) -> Tensor:
        """Returns a tensor."""
        return self.found[name]


class Form(ABC):
    """Reads the matrices of one form. A matrix is named after its module: `model.layers.0.mlp.up_proj`."""

    mark: str
    """The tensor that tells that a module is stored in this form, such as `qweight`."""

    @abstractmethod
    def shape(self, module: str, tensors: Tensors) -> tuple[int, int]:
        """Returns [out, in] of a module that has the mark, without reading its weights."""

    @abstractmethod
    def matrix(self, module: str, tensors: Tensors) -> StoredMatrix:
        """Returns the matrix of a module that has the mark.

        Raises:
            UsageError: Where its tensors don't fit each other, or an index is out of range.
        """

    def tensor(self, module: str, part: str, tensors: Tensors) -> Tensor:
        """Returns one tensor of a module.

        Raises:
            UsageError: Where it is missing.
        """
        if tensors.shape(f"{module}.{part}") is None:
            raise UsageError(f"the model's files lack the tensor {module}.{part}")
        return tensors.tensor(f"{module}.{part}")
