"""What makes the decoder's input embeddings of a vision tower's output, tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from outlay.models.linear import Linear
from outlay.models.mlp import ACTIVATIONS


class Connector(Protocol):
    """Connects a vision tower with a decoder."""

    @property
    def linears(self) -> Sequence[Linear]:
        """Its linear layers, each of which every visual token goes through once."""

    def __call__(self, states: Tensor) -> Tensor:
        """The tower's output for a tile, [rows, tower's hidden_size] -> visual tokens, [count, hidden_size]."""


@dataclass(frozen=True)
class Projector:
    """Two layers with an activation between them (LLaVA-1.5: Liu et al. 2023, section 3.2)."""

    first: Linear
    second: Linear
    activation: str
    skips: int
    """Rows at the beginning that are left out: the class token."""

    @property
    def linears(self) -> Sequence[Linear]:
        """Its linear layers."""
        return [self.first, self.second]

    @torch.inference_mode()
    def __call__(self, states: Tensor) -> Tensor:
        """[rows, tower's hidden_size] -> [rows - skips, hidden_size]"""
        return self.second(ACTIVATIONS[self.activation](self.first(states[self.skips :].contiguous())))


@dataclass(frozen=True)
class PixelShuffle:
    """Makes one wide row of each square of `factor` x `factor` rows, then one layer (Idefics3)."""

    projection: Linear
    factor: int

    @property
    def linears(self) -> Sequence[Linear]:
        """Its linear layer."""
        return [self.projection]

    @torch.inference_mode()
    def __call__(self, states: Tensor) -> Tensor:
        """[side * side, tower's hidden_size] -> [(side / factor)^2, hidden_size]"""
        side, factor = round(len(states) ** 0.5), self.factor
        squares = states.view(side // factor, factor, side // factor, factor, -1).transpose(1, 2)
        return self.projection(squares.reshape((side // factor) ** 2, -1).contiguous())
