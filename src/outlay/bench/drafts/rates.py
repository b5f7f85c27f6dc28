"""How often drafted tokens can be accepted without changing the target's distribution: what methods are compared with.

p is the draft's distribution and q the target's, both [vocab]; k candidates are drawn from p independently.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outlay.errors import UsageError

SLACK = 1e-4  # by which a distribution may miss a sum of 1


def check_distributions(p: Tensor, q: Tensor, k: int = 1) -> None:
    """Raises `UsageError` unless p and q are distributions over one vocabulary and k is 1 or more."""
    for name, probs in (("p", p), ("q", q)):
        if probs.dim() != 1 or bool((probs < 0).any()) or abs(float(probs.double().sum()) - 1) > SLACK:
            raise UsageError(f"{name} must be a distribution: no negative entry, and a sum of 1")
    if p.shape != q.shape:
        raise UsageError(f"p has {len(p)} entries and q {len(q)}; they must be over one vocabulary")
    if k < 1:
        raise UsageError(f"k must be 1 or more, not {k}")


def single_acceptance(p: Tensor, q: Tensor) -> float:
    """Returns the acceptance rate of one candidate: the sum of min(p, q), 1 less the total variation distance."""
    return float(torch.minimum(p.double(), q.double()).sum())


def recursive_acceptance(p: Tensor, q: Tensor, k: int) -> float:
    """Returns how often recursive rejection accepts one of k candidates (SpecInfer, Miao et al. 2024)."""
    p, residual, missed = p.double(), q.double(), 1.0
    for _ in range(k):
        accepted = float(torch.minimum(p, residual).sum())
        missed *= 1 - accepted
        residual = (residual - p).clamp_(min=0)
        total = float(residual.sum())
        if total <= 0:
            return 1.0
        residual /= total
    return 1 - missed


def optimal_acceptance(p: Tensor, q: Tensor, k: int) -> float:
    """Returns the most that any exact rule can accept one of k candidates (SpecTr, Sun et al. 2023).

    By max-flow and min-cut it is 1 + min over sets H of q(H) - p(H)^k, and the best H is a beginning of the tokens in
    ascending order of q / p, because t^k is convex.
    """
    check_distributions(p, q, k)
    p, q = p.double(), q.double()
    order = torch.where(p > 0, q / p.clamp_min(1e-300), torch.inf).argsort(stable=True)
    zero = torch.zeros(1, dtype=torch.float64)
    above, below = torch.cat([zero, q[order].cumsum(0)]), torch.cat([zero, p[order].cumsum(0)])
    return min(1.0, 1 + float((above - below.clamp(max=1) ** k).min()))
