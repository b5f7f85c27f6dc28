"""The feed-forward part of a layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.models.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class Mlp:
    """down(act(gate(x)) * up(x)), with gate and up in one product; down(act(up(x))) if it is not gated."""

    def __init__(self, gate_up: Linear, down: Linear, activation: str, gated: bool) -> None:
        self.gate_up, self.down, self.gated = gate_up, down, gated
        self.activation_name, self.activation = activation, ACTIVATIONS[activation]
        self.width = down.in_features
        self.nbytes = gate_up.nbytes + down.nbytes
        self.multiplies = sum(part.in_features * part.out_features for part in (gate_up, down))

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, hidden] -> [n, hidden]"""
        inner = self.gate_up(x)
        if not self.gated:
            return self.down(self.activation(inner))
        gate = self.activation(inner[:, : self.width])
        return self.down(gate.mul_(inner[:, self.width :]))

    @property
    def linears(self) -> list[Linear]:
        """Its linear layers."""
        return [self.gate_up, self.down]

    def pass_bytes(self, tokens: int) -> int:
        """Returns the bytes of weights that a pass over `tokens` rows reads."""
        return self.nbytes


class Sparsification:
    """relu(x + change(x)): the proximal step of CRATE with its dictionary in one layer, whose bias is the threshold."""

    def __init__(self, change: Linear) -> None:
        self.change = change
        self.nbytes = change.nbytes
        self.multiplies = change.in_features * change.out_features

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, hidden] -> [n, hidden]"""
        return F.relu(x + self.change(x))

    @property
    def linears(self) -> list[Linear]:
        """Its linear layers."""
        return [self.change]

    def pass_bytes(self, tokens: int) -> int:
        """Returns the bytes of weights that a pass over `tokens` rows reads."""
        return self.nbytes
