"""What a method that shrinks weights offers: options, and what it makes of one matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from outlay.about import Entry
from outlay.errors import UsageError
from outlay.shrink.block import Block, Norms, Tuning

T = TypeVar("T")
TASK = "shrink"


@dataclass
class Moment:
    """Second moments of what some linear layers read, E[x x^T]."""

    h: Tensor
    """Float64 [in, in]."""
    tokens: int
    """Of how many inputs."""
    name: str
    """The layers that read them."""
    _known: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """Returns what is made of these moments for all layers that share them; made at the first call of a key."""
        if key not in self._known:
            self._known[key] = make()
        found: T = self._known[key]
        return found


@dataclass(frozen=True)
class Shrunk:
    """What became of one matrix."""

    tensors: Mapping[str, Tensor]
    """What its module's tensors are called in the file, after the module's name and a dot, and what they hold."""
    weight: Tensor
    """The matrix that readers will make of them, float32 [out, in]."""
    unfed: Tensor | None = None
    """The matrix without error feedback, float32 [out, in]; None where the method has none."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """What the method counted, such as amplitudes that were clamped."""

    @property
    def file_bytes(self) -> int:
        """Bytes of the tensors in the file."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class Tuned:
    """What tuning a layer gave."""

    tensors: Mapping[str, Tensor]
    """What its matrices are now, by their names in the file."""
    weights: Mapping[str, Tensor]
    """The matrices that readers will make of them, float32 [out, in], by module."""
    norms: Norms
    """The weights of its norms."""
    errors: tuple[float, float]
    """The mean square difference of the layer's output from the float layer's, before and after."""


class Shrinker(Entry, ABC):
    """Base of the methods that shrink weights. A subclass is a frozen dataclass of its options, with an `about`."""

    @classmethod
    @abstractmethod
    def at_bits(cls, bits: float) -> dict[str, Any]:
        """Returns the options that come nearest to some bits a weight.

        Raises:
            UsageError: Where the method can't go as low or as high.
        """

    @abstractmethod
    def shrink(self, weight: Tensor, moment: Moment, name: str) -> Shrunk:
        """Shrinks one matrix.

        Args:
            weight: Float32 [out, in].
            moment: Second moments of its inputs.
            name: Its module's name, for messages.

        Raises:
            UsageError: Where the options don't suit the matrix.
        """

    def tune(self, block: Block, tensors: Mapping[str, Tensor], tuning: Tuning) -> Tuned:
        """Tunes the matrices of a layer together, against what the float layer gives.

        Args:
            block: The layer.
            tensors: What was made of its matrices, by their names in the file.
            tuning: How long, and how fast.

        Raises:
            UsageError: The method has nothing that can be tuned.
        """
        raise UsageError(f"{self.about.name} has no codebooks to tune; vptq has")

    @abstractmethod
    def quantization_config(self) -> dict[str, Any]:
        """Returns what config.json says about the form, under `quantization_config`."""

    def module_config(self, shape: tuple[int, int]) -> dict[str, Any]:
        """Returns what `quantization_config` says about one matrix [out, in]; empty where nothing is to be said."""
        return {}
