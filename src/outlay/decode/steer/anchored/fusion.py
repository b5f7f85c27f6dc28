"""The distribution nearest to the risky model's within a KL budget of the safe model's."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

STEPS = 60  # of the root search; Newton's need 4 to 8, bisection alone 40 for a double
SLACK = 5e-7  # nats by which a solution may lie below its budget, and below half of it
LEAST_SLOPE = 1e-9  # of KL in theta, below which Newton's step says nothing (the authors' code)

Floats = npt.NDArray[np.float64]


class Fused(NamedTuple):
    """A fused distribution."""

    probs: Tensor
    """float64 [symbols]."""
    kl: float
    """KL(q || p_safe) in nats: what the step spends."""
    theta: float
    """The weight of the risky model: 0 is the safe model's distribution, 1 the risky one's."""


class Geodesic:
    """The distributions q_theta, proportional to p_safe^(1 - theta) p_risky^theta, on what both models can write.

    Args:
        log_safe: The safe model's log-probabilities, float64 [symbols]; -inf for what it never writes.
        log_risky: The risky model's.
    """

    def __init__(self, log_safe: Tensor, log_risky: Tensor) -> None:
        self._common = ((log_safe > -torch.inf) & (log_risky > -torch.inf)).numpy()
        self._safe: Floats = log_safe.numpy()[self._common]
        self._ratio: Floats = log_risky.numpy()[self._common] - self._safe
        self._square = self._ratio * self._ratio

    def __bool__(self) -> bool:
        return bool(len(self._safe))

    def kl(self, theta: float) -> tuple[float, float]:
        """Returns KL(q_theta || p_safe) in nats, and its derivative: theta Var_q[a], where a = log p_r - log p_s.

        p_safe isn't renormalised on what both can write: leaving symbols out costs minus the logarithm of the rest.
        """
        weights, log_total = self._weights(theta)
        mean, second = weights @ self._ratio, weights @ self._square
        return max(0.0, float(theta * mean - log_total)), float(theta * max(0.0, second - mean * mean))

    def probs(self, theta: float) -> Tensor:
        """Returns q_theta, float64 [symbols]."""
        probs = np.zeros(len(self._common))
        probs[self._common] = self._weights(theta)[0]
        return torch.from_numpy(probs)

    def _weights(self, theta: float) -> tuple[Floats, float]:
        """Returns q_theta of the common symbols, and the logarithm of its normaliser, A(theta)."""
        scores = self._safe + theta * self._ratio
        top = scores.max()
        weights = np.exp(scores - top)
        total = weights.sum()
        return weights / total, float(top) + math.log(total)


def fuse(log_safe: Tensor, log_risky: Tensor, k: float) -> Fused:
    """Returns argmin KL(q || p_risky) under KL(q || p_safe) <= k.

    The budget holds for the returned `kl` as it stands, rounding included. Where it is the limit, `kl` lies within 1e-6
    nats of it.

    Args:
        log_safe: The safe model's log-probabilities, float64 [symbols].
        log_risky: The risky model's.
        k: The budget in nats. From 0 down, and where nothing that both models write is within it, the safe model's
            distribution is left as it is.
    """
    path = Geodesic(log_safe, log_risky) if k > 0 else None
    if not path:
        return Fused(log_safe.exp(), 0.0, 0.0)
    whole, _ = path.kl(1.0)
    theta, spent = (1.0, whole) if whole <= k else _within(path, k)
    return Fused(path.probs(theta) if theta else log_safe.exp(), spent, theta)


def _within(path: Geodesic, k: float) -> tuple[float, float]:
    """Returns the theta in [0, 1) at which KL reaches k from below, and that KL.

    Newton's method, with bisection where it leaves the bracket. It aims just below k, so that what it converges to is
    within the budget; a last bisection, as in the authors' code, can end far below.
    """
    slack = min(SLACK, k / 4)
    low, high, at_low, theta = 0.0, 1.0, 0.0, min(max(k / (k + 1), 1e-4), 1 - 1e-4)
    for _ in range(STEPS):
        kl, slope = path.kl(theta)
        above = kl - (k - slack)
        if abs(above) <= slack:
            return theta, kl
        if above > 0:
            high = theta
        else:
            low, at_low = theta, kl
        step = theta - above / max(slope, LEAST_SLOPE)
        theta = step if low < step < high else (low + high) / 2
    return low, at_low
