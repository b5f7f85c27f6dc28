"""Single operations of the native kernels on float32 tensors."""

import torch
from torch import Tensor

from outlay.kernels.native import address, check, library

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [rows, n], weight [n] -> x / sqrt(mean(x^2) + eps) * weight."""
    x, weight, out = x.contiguous(), weight.contiguous(), torch.empty(x.shape)
    check(library().outlay_rms_norm(x.data_ptr(), weight.data_ptr(), x.shape[0], x.shape[1], eps, out.data_ptr()))
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x [rows, n], weight and bias [n] -> (x - mean) / sqrt(variance + eps) * weight + bias."""
    x, weight, bias, out = x.contiguous(), weight.contiguous(), bias.contiguous(), torch.empty(x.shape)
    rows, n = x.shape
    check(library().outlay_layer_norm(x.data_ptr(), weight.data_ptr(), bias.data_ptr(), rows, n, eps, out.data_ptr()))
    return out


def activate(kind: str, gate: Tensor, up: Tensor | None = None) -> Tensor:
    """act(gate) * up, or act(gate) where there is no up, any shape; `kind` is one of `ACTIVATIONS`."""
    gate, out = gate.contiguous(), torch.empty(gate.shape)
    up = up if up is None else up.contiguous()
    check(library().outlay_activate(ACTIVATIONS[kind], gate.data_ptr(), address(up), gate.numel(), out.data_ptr()))
    return out


def exp(x: Tensor) -> Tensor:
    """e^x with a relative error below 2e-7; 0 below -87.3."""
    x, out = x.contiguous(), torch.empty(x.shape)
    check(library().outlay_exp(x.data_ptr(), x.numel(), out.data_ptr()))
    return out
