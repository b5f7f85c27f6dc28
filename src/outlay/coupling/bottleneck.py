"""Minimum-entropy coupling with a bottleneck (Ebrahimi, Chen and Khisti 2024, arXiv 2410.21666).

A source X is coded into T of at most R bits of entropy, and Y, of a prescribed distribution, is made from T, to tell as
much of X as it can. Since I(X;Y) >= I(X;T) + I(T;Y) - R, the two halves are solved apart: entropy-bounded information
maximisation (EBIM) for the encoder, a minimum-entropy coupling for the decoder. EBIM's greedy solution merges outcomes,
and is at most h(p_2) bits below R, h the binary entropy and p_2 the second largest probability (Theorem 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from outlay.coupling.entropy import Probs, drawn, entropy, information
from outlay.coupling.minimum import Coupling, min_entropy
from outlay.errors import UsageError

HALVINGS = 60  # of an interval of at most 1, until float64 can't halve it


@dataclass(frozen=True)
class Encoder:
    """A code of X's n outcomes in k columns: each outcome in one column, but for one whose mass may be split."""

    columns: npt.NDArray[np.int64]
    """The column of each outcome, [n]."""
    masses: Probs
    """P(T), [k]."""
    information: float
    """I(X;T), in bits."""
    split: tuple[int, int, float] | None = None
    """An outcome, a second column, and the mass of the outcome that goes there; None: the code is deterministic."""

    @property
    def entropy(self) -> float:
        """H(T), in bits."""
        return entropy(self.masses)

    def joint(self, p: Probs) -> Probs:
        """Returns P(X, T), float64 [n, k], for the distribution of X that the code was made for."""
        made = np.zeros((len(p), len(self.masses)))
        made[np.arange(len(p)), self.columns] = p
        if self.split is not None:
            outcome, column, mass = self.split
            made[outcome, self.columns[outcome]] -= mass
            made[outcome, column] += mass
        return made

    def draw(self, outcome: int, p: Probs, number: float) -> int:
        """Returns the column that an outcome is coded in; `number` is from [0, 1), and decides where there are two."""
        if self.split is not None and self.split[0] == outcome and number * p[outcome] < self.split[2]:
            return self.split[1]
        return int(self.columns[outcome])


Quantizer = Callable[[Probs, float], Encoder]
"""(p [n], R in bits) -> an encoder with H(T) <= R."""


@dataclass(frozen=True)
class Bottleneck:
    """The chain X - T - Y."""

    p: Probs
    encoder: Encoder
    coupling: Coupling
    """Of T and Y."""

    def joint(self) -> Probs:
        """Returns P(X, Y), float64 [n, k]: the sum over t of p(x, t) J(t, y) / P(t)."""
        joint: Probs = (self.encoder.joint(self.p) / self.encoder.masses) @ self.coupling.dense()
        return joint

    @property
    def information(self) -> float:
        """I(X;Y), in bits."""
        return information(self.joint())

    def draw(self, outcome: int, numbers: tuple[float, float]) -> int:
        """Returns a y drawn for an outcome of X; the numbers are from [0, 1)."""
        columns, masses = self.coupling.row(self.encoder.draw(outcome, self.p, numbers[0]))
        return int(columns[drawn(masses, numbers[1])])

    def posterior(self, y: int) -> Probs | None:
        """Returns P(X | y), float64 [n]; None where y never occurs."""
        shares = self.coupling.column(y) / self.encoder.masses
        found = self.p * shares[self.encoder.columns]
        if self.encoder.split is not None:
            outcome, column, mass = self.encoder.split
            found[outcome] += mass * (shares[column] - shares[self.encoder.columns[outcome]])
        total = float(found.sum())
        return found / total if total > 0 else None


def bottleneck(p: Probs, q: Probs, rate: float, quantizer: Quantizer | None = None) -> Bottleneck:
    """Returns a coupling of X and Y through a code of bounded entropy.

    Args:
        p: P(X), float64 [n].
        q: P(Y), float64 [k].
        rate: R, in bits.
        quantizer: Makes the encoder; None: `ebim`.

    Raises:
        UsageError: For a rate below 0.
    """
    encoder = (quantizer or ebim)(p, rate)
    return Bottleneck(p, encoder, min_entropy(encoder.masses, q))


def ebim(p: Probs, rate: float, *, refine: bool = False, every: bool = False) -> Encoder:
    """Returns the greedy encoder of X with H(T) <= R, in O(n log n).

    Args:
        p: P(X), float64 [n].
        rate: R, in bits.
        refine: Whether one outcome's mass may be split, to use all of R (Theorem 3).
        every: Whether each outcome is tried for that, not the theorem's alone.

    Raises:
        UsageError: For a rate below 0.

    Source: Ebrahimi et al. 2024, Algorithm 1; Theorem 3.
    """
    if not rate >= 0:
        raise UsageError(f"a rate is bits of entropy, 0 or more, not {rate:g}")
    order = np.argsort(-p, kind="stable")[: np.count_nonzero(p)]
    if rate >= entropy(p):
        return _deterministic(p, order, np.arange(len(order)))
    below, above = _greedy(p[order], rate)
    best = _deterministic(p, order, below)
    if refine:
        tried = [*_raised(p, best, rate, every), *_lowered(p, _deterministic(p, order, above), rate, every)]
        best = max([best, *tried], key=lambda each: each.information)
    return best


def uniform_quantizer(p: Probs, rate: float, *, support_aware: bool = True) -> Encoder:
    """Returns the code that puts equally many outcomes into each of floor(2^R) columns, whatever their masses.

    Args:
        p: P(X), float64 [n].
        rate: R, in bits.
        support_aware: Whether outcomes of probability 0 are left out before the others are counted off.
    """
    size = np.count_nonzero(p) if support_aware else len(p)
    columns = max(1, min(size, math.floor(2**rate + 1e-9)))
    order = np.flatnonzero(p) if support_aware else np.arange(len(p))
    return _deterministic(p, order, np.arange(size) // -(-size // columns))


def _deterministic(p: Probs, order: npt.NDArray[np.int64], clusters: npt.NDArray[np.int64]) -> Encoder:
    """Returns the encoder of a clustering of the outcomes in `order`; columns without mass are dropped."""
    masses: Probs = np.bincount(clusters, p[order]).astype(np.float64)
    kept = np.flatnonzero(masses)
    columns = np.zeros(len(p), dtype=np.int64)
    columns[order] = np.searchsorted(kept, clusters)
    return Encoder(np.minimum(columns, len(kept) - 1), masses[kept], entropy(masses))


def _greedy(p: Probs, rate: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns two clusterings: the greedy one with H(T) <= R < H(p), and the last on its way with more.

    After m merges of the two largest clusters, the m + 1 largest outcomes are one and the others alone, so that the
    entropy of each clustering on the way follows from prefix sums.

    Args:
        p: Probabilities above 0, the largest first, [n].
    """
    size = len(p)
    merged = np.cumsum(p)
    alone = np.append(np.cumsum((-p * np.log2(p))[::-1])[::-1][1:], 0.0)
    entropies = alone - merged * np.log2(merged)  # after m = 0, ..., n - 1 merges
    entropies[-1] = 0.0
    one, other = p[-1], p[-2]
    smallest = np.maximum(entropies - one * np.log2(1 + other / one) - other * np.log2(1 + one / other), 0.0)
    smallest[size - 2 :] = 0.0  # the smallest two of two clusters are all that there is
    merges = int(np.argmax((smallest <= rate) | (np.append(entropies[1:], 0.0) <= rate)))
    above = np.maximum(np.arange(size) - merges, 0)
    if smallest[merges] <= rate:
        below = above.copy()
        below[-1] = max(below[-1] - 1, 0)
        if merges == size - 2:
            below[:] = 0
        return below, above
    return np.maximum(np.arange(size) - merges - 1, 0), above


def _raised(p: Probs, code: Encoder, rate: float, every: bool) -> Iterator[Encoder]:
    """Yields codes whose entropy is raised to R by a part of one outcome's mass in a new column."""
    shares = np.where(p > 0, p / code.masses[code.columns], np.inf)
    for outcome in np.flatnonzero(shares < 1) if every else [int(np.argmin(shares))]:
        here = int(code.columns[outcome])
        most = min(float(p[outcome]), code.masses[here] / 2)

        def moved(mass: float, here: int = here) -> Probs:
            masses = np.append(code.masses, mass)
            masses[here] -= mass
            return masses

        yield from _split(p, code, int(outcome), len(code.masses), most, moved, rate)


def _lowered(p: Probs, code: Encoder, rate: float, every: bool) -> Iterator[Encoder]:
    """Yields codes whose entropy is lowered to R by a part of one outcome's mass in a heavier column."""
    lightest, heaviest = int(np.argmin(code.masses)), int(np.argmax(code.masses))
    inside = np.flatnonzero((code.columns == lightest) & (p > 0))
    pairs = [(int(inside[np.argmin(p[inside])]), heaviest)]
    if every:
        pairs = [(int(x), t) for x in np.flatnonzero(p) for t in range(len(code.masses)) if t != code.columns[x]]
    for outcome, there in pairs:
        here = int(code.columns[outcome])

        def moved(mass: float, here: int = here, there: int = there) -> Probs:
            masses = code.masses.copy()
            masses[here] -= mass
            masses[there] += mass
            return np.maximum(masses, 0.0)

        yield from _split(p, code, outcome, there, float(p[outcome]), moved, rate)


def _split(
    p: Probs, code: Encoder, outcome: int, there: int, most: float, moved: Callable[[float], Probs], rate: float
) -> Iterator[Encoder]:
    """Yields the code in which so much of an outcome's mass goes to another column that H(T) is R, where that can be.

    Args:
        most: The greatest mass that may go.
        moved: P(T) once a mass has gone.
    """
    low, high = 0.0, most
    rises = entropy(moved(0.0)) <= rate
    if (entropy(moved(most)) <= rate) == rises:
        if not rises:
            return
        low = most  # all of it fits
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if (entropy(moved(middle)) <= rate) == rises else (low, middle)
    mass = low if rises else high
    masses = moved(mass)
    kept = np.flatnonzero(masses > 0)
    split = None if mass >= p[outcome] else (outcome, int(np.searchsorted(kept, there)), mass)
    columns = code.columns if split is not None else np.where(np.arange(len(p)) == outcome, there, code.columns)
    share = mass / p[outcome]
    lost = p[outcome] * entropy(np.array([share, 1 - share]))
    yield Encoder(
        np.minimum(np.searchsorted(kept, columns), len(kept) - 1), masses[kept], entropy(masses) - lost, split
    )
