"""Norms, computed in float32 whatever the activations are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class RMSNorm:
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        width = weight.shape[0]
        self.weight, self.eps = weight.float(), eps
        # The norm is the root of the sum, not of the mean: the width moves into weight and eps.
        self._scaled, self._eps = self.weight * width**0.5, eps * width
        self.nbytes = self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., size] -> the same shape and dtype"""
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().add_(self._eps).rsqrt_()
        return (wide * scale).mul_(self._scaled).to(x.dtype)


class LayerNorm:
    """(x - mean) / std * weight + bias over the last dimension."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        self.weight, self.bias, self.eps = weight.float(), bias.float(), eps
        self.nbytes = self.weight.nbytes + self.bias.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., size] -> the same shape and dtype"""
        return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


Norm = RMSNorm | LayerNorm
