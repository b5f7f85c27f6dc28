"""Single operations of the native kernels on float32 tensors."""

import torch
from torch import Tensor

from outlay.kernels.native import check, library


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [rows, n], weight [n] -> x / sqrt(mean(x^2) + eps) * weight."""
    x, weight, out = x.contiguous(), weight.contiguous(), torch.empty(x.shape)
    check(library().outlay_rms_norm(x.data_ptr(), weight.data_ptr(), x.shape[0], x.shape[1], eps, out.data_ptr()))
    return out


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, any shape."""
    gate, up, out = gate.contiguous(), up.contiguous(), torch.empty(gate.shape)
    check(library().outlay_silu_mul(gate.data_ptr(), up.data_ptr(), gate.numel(), out.data_ptr()))
    return out


def exp(x: Tensor) -> Tensor:
    """e^x with a relative error below 2e-7; 0 below -87.3."""
    x, out = x.contiguous(), torch.empty(x.shape)
    check(library().outlay_exp(x.data_ptr(), x.numel(), out.data_ptr()))
    return out
