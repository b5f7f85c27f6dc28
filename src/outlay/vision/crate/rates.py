"""Coding rates, and the two steps of sparse rate reduction on the tokens themselves (Yu et al. 2023).

Tokens are rows, z [..., n, dim]; the subspaces are U [heads, dim, width], each with orthonormal columns in the theory.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rate(z: Tensor, eps2: float) -> Tensor:
    """Returns the coding rate R(Z) = 1/2 logdet(I + dim / (n eps^2) Z^T Z) of tokens.

    Args:
        z: Tokens, [..., n, dim]. Computed in their dtype: float64 where n is large or eps2 small.
        eps2: The squared quantisation error.

    Returns:
        Nats, [...].
    """
    n, dim = z.shape[-2:]
    scale = dim / (n * eps2)
    gram = z.mT @ z if dim < n else z @ z.mT  # Sylvester: both determinants are equal
    eye = torch.eye(gram.shape[-1], dtype=z.dtype, device=z.device)
    return torch.linalg.slogdet(eye + scale * gram).logabsdet / 2


def subspace_rate(w: Tensor, eps2: float) -> Tensor:
    """Returns the rate R^c of tokens that are coded in each subspace by itself.

    Args:
        w: The tokens' coordinates in each subspace, [..., heads, n, width].
        eps2: The squared quantisation error.

    Returns:
        Nats, [...].
    """
    return rate(w, eps2).sum(-1)


def coordinates(z: Tensor, subspaces: Tensor) -> Tensor:
    """Returns the tokens z [..., n, dim] in each subspace, [..., heads, n, width]."""
    return z.unsqueeze(-3) @ subspaces


def rate_gradient(z: Tensor, subspaces: Tensor, eps2: float) -> Tensor:
    """Returns the exact gradient of `subspace_rate` by the tokens.

    Args:
        z: Tokens, [..., n, dim].
        subspaces: [heads, dim, width].
        eps2: The squared quantisation error.

    Returns:
        [..., n, dim].
    """
    w = coordinates(z, subspaces)
    beta = step_scale(w, eps2)
    eye = torch.eye(w.shape[-2], dtype=z.dtype, device=z.device)
    inner = torch.linalg.solve(eye + beta * w @ w.mT, w)
    return beta * (inner @ subspaces.mT).sum(-3)


def step_scale(w: Tensor, eps2: float) -> float:
    """Returns beta = width / (n eps^2) of coordinates w [..., n, width]."""
    return w.shape[-1] / (w.shape[-2] * eps2)


def compress(
    z: Tensor,
    subspaces: Tensor,
    kappa: float,
    eps2: float,
    mask: Tensor | None = None,
    w: Tensor | None = None,
) -> Tensor:
    """Takes the step of multi-head subspace self-attention: a gradient step on R^c with the inverse made an attention.

    The inverse is expanded to its first order, I - beta w w^T, and the softmax of w w^T stands for beta w w^T. (The
    paper has another beta before the attention; with it the step raises R^c wherever beta is above 1.)

    Args:
        z: Tokens, [..., n, dim].
        subspaces: [heads, dim, width].
        kappa: The step size.
        eps2: The squared quantisation error.
        mask: Which tokens (columns) a token (row) attends to, bool [n, n]; None: all of them.
        w: The tokens' coordinates, if they are known.

    Returns:
        (1 - kappa beta) z + kappa beta sum_k softmax(w_k w_k^T) w_k U_k^T, [..., n, dim].
    """
    w = coordinates(z, subspaces) if w is None else w
    beta = step_scale(w, eps2)
    scores = w @ w.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    attended = (scores.softmax(-1) @ w @ subspaces.mT).sum(-3)
    return (1 - kappa * beta) * z + kappa * beta * attended


def sparsify(z: Tensor, dictionary: Tensor, eta: float, lam: float, target: Tensor | None = None) -> Tensor:
    """Takes a proximal step on lam |z|_1 + 1/2 |target - D z|^2 over z >= 0 (ISTA).

    Args:
        z: Where the step starts, [..., n, dim].
        dictionary: D, [dim, dim], which multiplies a token as a column.
        eta: The step size.
        lam: The weight of the L1 norm.
        target: What the dictionary should make of the result, [..., n, dim]; None: z, as in the network.

    Returns:
        relu(z + eta D^T (target - D z) - eta lam), [..., n, dim].
    """
    gap = (z if target is None else target) - z @ dictionary.mT
    return torch.relu(torch.addmm(z.flatten(0, -2), gap.flatten(0, -2), dictionary, alpha=eta).view_as(z) - eta * lam)


def sparse_code(x: Tensor, dictionary: Tensor, eta: float, lam: float, steps: int = 2) -> Tensor:
    """Takes proximal steps on lam |z|_1 + 1/2 |x - D z|^2 over z >= 0 from z = 0, in a dictionary of any size.

    The first step is relu(eta D^T x - eta lam). (Yang et al. 2024, Scaling White-Box Transformers for Vision, which
    takes two.)

    Args:
        x: What the dictionary should make of the code, [..., n, dim].
        dictionary: D, [dim, atoms], which multiplies a code as a column.
        eta: The step size.
        lam: The weight of the L1 norm.
        steps: How many steps; 1 or more.

    Returns:
        z, [..., n, atoms].
    """
    code = torch.relu(eta * (x @ dictionary) - eta * lam)
    for _ in range(steps - 1):
        code = torch.relu(code + eta * ((x - code @ dictionary.mT) @ dictionary) - eta * lam)
    return code
