"""The budget of a whole text: what a step may spend, what is banked, and the debt that a prompt begins with."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Reduce = Literal["topn_mean", "positive_mean"]


@dataclass
class KLBudget:
    """K = k T nats for a text of T symbols, of which k more become free with each step.

    What a step leaves is banked for later ones. The debt is paid off first.
    """

    k: float
    """Nats a symbol."""
    steps: int
    """T: symbols of the longest text."""
    debt: float = 0.0
    """Nats that the prompt owes."""
    spent: float = 0.0
    """Nats that were spent so far."""
    taken: int = 0
    """Steps so far."""

    @property
    def total(self) -> float:
        """K, the most nats that a text may spend, its debt included."""
        return self.k * self.steps

    @property
    def allowed(self) -> float:
        """k_t, the nats that the next step may spend: max(0, (t + 1) k - debt - spent), and no more than K for all."""
        return max(0.0, min((self.taken + 1) * self.k, self.total) - self.debt - self.spent)

    def spend(self, kl: float) -> None:
        """Takes a step of KL(q || p_safe): that of the distribution, not of the token that was drawn from it."""
        self.spent += kl
        self.taken += 1


def prefix_debt(ratios: Sequence[float], n: int, reduce: Reduce) -> float:
    """Returns the debt of a prompt: the mean of its n largest log-likelihood ratios.

    Args:
        ratios: log p_risky - log p_safe of each symbol of the prompt after those before it, in nats.
        n: How many of the largest are taken.
        reduce: "topn_mean": those below 0 count as 0 (release 0.1.0). "positive_mean": they aren't counted at all.
    """
    largest = [max(0.0, ratio) for ratio in heapq.nlargest(n, ratios)]
    counted = [ratio for ratio in largest if ratio > 0] if reduce == "positive_mean" else largest
    return sum(counted) / len(counted) if counted else 0.0
