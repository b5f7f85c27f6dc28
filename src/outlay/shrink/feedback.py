"""Error feedback over the columns of a matrix, into which every quantizer plugs (Frantar et al. 2022, section 3).

Columns are quantized from left to right. What the quantization of one adds to the layer's output is made up for by the
columns that are not quantized yet, through the inverse of the second moments of the layer's inputs. A quantizer says
how many columns it takes at once and what it makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from typing import Protocol

import torch
from torch import Tensor

from outlay.errors import UsageError

BLOCK = 128  # columns after which what is right of them is updated


class Quantizer(Protocol):
    """Turns columns into what their file can hold. It remembers the codes itself."""

    columns: int
    """Columns that it takes at once."""
    group: int
    """Columns whose current weights it wants to see together, from a multiple of this many on; 1 if it needs none."""

    def quantize(self, ahead: Tensor, places: Tensor, factor: Tensor) -> Tensor:
        """Quantizes the next columns.

        Args:
            ahead: The weights as they are now from the next column to the end of the block, float32 [out, a].
            places: Which columns of the matrix these are, int64 [a].
            factor: Their rows and columns of the factor, float32 [a, a], upper triangular.

        Returns:
            What the first `columns` of them become, float32 [out, columns].
        """


@dataclass(frozen=True)
class Walked:
    """What became of a matrix."""

    weight: Tensor
    """The quantized matrix, float32 [out, in]."""
    adjusted: Tensor
    """Each column as it was when its turn came, with the feedback of those before it, float32 [out, in]."""


def walk(weight: Tensor, factor: Tensor | None, quantizer: Quantizer, order: Tensor | None = None) -> Walked:
    """Quantizes a matrix column by column, each error fed into the columns that follow.

    Args:
        weight: Float32 [out, in].
        factor: Upper Cholesky factor of the inverse of the inputs' second moments, float32 [in, in], its rows and
            columns in `order`; None: no feedback.
        quantizer: What is made of the columns.
        order: The order of the columns, int64 [in]; None: from left to right.

    Returns:
        The quantized matrix, its columns in their own order.

    Raises:
        UsageError: Where the quantizer's columns don't divide the matrix's.
    """
    n, taken = weight.shape[1], quantizer.columns
    if n % taken:
        raise UsageError(f"{n} inputs don't divide into {taken} columns")
    places = torch.arange(n) if order is None else order
    current = weight[:, places].clone()
    factor = torch.eye(n) if factor is None else factor
    quantized = torch.empty_like(current)
    block = BLOCK // lcm(taken, quantizer.group) * lcm(taken, quantizer.group) or lcm(taken, quantizer.group)
    for begin in range(0, n, block):
        end = min(begin + block, n)
        errors = torch.empty(len(weight), end - begin)
        for at in range(begin, end, taken):
            after = at + taken
            found = quantizer.quantize(current[:, at:end], places[at:end], factor[at:end, at:end])
            quantized[:, at:after] = found
            error = current[:, at:after] - found
            if taken == 1:
                error = error / factor[at, at]
            else:
                error = torch.linalg.solve_triangular(factor[at:after, at:after], error, upper=True, left=False)
            current[:, after:end] -= error @ factor[at:after, after:end]
            errors[:, at - begin : after - begin] = error
        current[:, end:] -= errors @ factor[begin:end, end:]
    back = places.argsort()
    return Walked(quantized[:, back], current[:, back])


def damped(moment: Tensor, damping: float) -> Tensor:
    """Returns second moments whose inverse exists.

    Args:
        moment: Float64 [in, in], of one layer's inputs.
        damping: Share of the mean of the diagonal that is added to it.

    Returns:
        Float64 [in, in]; an input that was always 0 counts as 1.
    """
    diagonal = moment.diagonal()
    fixed = moment + torch.diag((diagonal == 0).to(moment.dtype))
    return fixed + damping * fixed.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)


def inverse_factor(moment: Tensor, name: str = "a layer") -> Tensor:
    """Returns the upper Cholesky factor of the inverse of second moments.

    Args:
        moment: Float64 [in, in], positive definite.
        name: Whose inputs they are, for messages.

    Returns:
        U, float32 [in, in], with U^T U = moment^-1.

    Raises:
        UsageError: Where they are not positive.
    """
    lower, failed = torch.linalg.cholesky_ex(moment)
    if int(failed):
        least = float(torch.linalg.eigvalsh(moment)[0])
        raise UsageError(
            f"the second moments of the inputs of {name} are not positive (smallest eigenvalue {least:.3g}); "
            "take more calibration text or more damping"
        )
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()


def proxy_error(weight: Tensor, quantized: Tensor, moment: Tensor) -> float:
    """Returns the error of a layer's output as a share of it: tr(D H D^T) / tr(W H W^T), D = W - Q.

    Args:
        weight: W, float32 [out, in].
        quantized: Q, float32 [out, in].
        moment: H, float64 [in, in].
    """
    return proxy_errors(weight, (quantized,), moment)[0]


def proxy_errors(weight: Tensor, quantized: Sequence[Tensor], moment: Tensor) -> list[float]:
    """Returns the errors of several matrices that may stand for one, as `proxy_error` has each."""
    h = moment.float()
    whole = _energy(weight, h)
    return [_energy(weight - each, h) / whole for each in quantized]


def _energy(weight: Tensor, h: Tensor) -> float:
    """Returns tr(W H W^T)."""
    return float(((weight @ h) * weight).sum(dtype=torch.float64))
