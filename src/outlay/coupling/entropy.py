"""Entropies of finite distributions, in bits, and the lower bound of a coupling's entropy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from outlay.errors import UsageError

Probs = npt.NDArray[np.float64]
TOLERANCE = 1e-6  # how far a user's probabilities may be from a sum of 1: that of float32


def distribution(values: npt.ArrayLike, name: str = "probabilities") -> Probs:
    """Returns probabilities, float64 [n], which sum to 1.

    Args:
        values: Probabilities of n outcomes.
        name: What they are called in errors.

    Raises:
        UsageError: If they are no list of numbers, one is negative, there is none, or their sum is not 1.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1:
        raise UsageError(f"{name} must be a list of numbers, not an array of {found.ndim} dimensions")
    if not found.size:
        raise UsageError(f"{name} must be of at least one outcome; there are none")
    if not np.isfinite(found).all() or (found < 0).any():
        raise UsageError(f"{name} must be 0 or more; one is {found[~(found >= 0) | ~np.isfinite(found)][0]:g}")
    total = float(found.sum())
    if abs(total - 1) > TOLERANCE:
        raise UsageError(f"{name} must sum to 1, not {total:g}")
    return found / total


def entropy(p: Probs) -> float:
    """Returns the entropy of masses that sum to 1, in bits; 0 log 0 is 0."""
    p = p[p > 0]
    return float(max(0.0, -(p * np.log2(p)).sum()))


def information(joint: Probs) -> float:
    """Returns the mutual information of a joint distribution [n, k], in bits."""
    return max(0.0, entropy(joint.sum(1)) + entropy(joint.sum(0)) - entropy(joint.ravel()))


def meet(p: Probs, q: Probs) -> Probs:
    """Returns the greatest distribution that both majorise, whose entropy no coupling of them falls below.

    Source: Cicalese, Gargano and Vaccaro 2019: differences of the least of the sorted prefix sums.
    """
    size = max(len(p), len(q))
    sums = [np.cumsum(np.sort(np.pad(each, (0, size - len(each))))[::-1]) for each in (p, q)]
    return np.maximum(0.0, np.diff(np.minimum(*sums), prepend=0.0))


def drawn(masses: Probs, number: float) -> int:
    """Returns an outcome drawn by its mass; `number` is from [0, 1), and the masses need not sum to 1."""
    sums = np.cumsum(masses)
    return min(int(np.searchsorted(sums, number * sums[-1], side="right")), len(masses) - 1)
