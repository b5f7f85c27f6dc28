"""The greedy minimum-entropy coupling of two distributions (Kocaoglu et al. 2017).

The largest mass that is left of the one is put on the largest that is left of the other, until nothing is left. Its
entropy is at most log2(e)/e, 0.53 bits, above the least that there is (Compton et al. 2023).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from outlay.coupling.entropy import Probs, entropy, meet

RESIDUAL = 1e-12  # probability that is left over: the sum of float64's roundings, and far below any that matters


@dataclass(frozen=True)
class Coupling:
    """A joint distribution of two, by its cells that are not 0: at most n + k - 1 of them, row by row."""

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    masses: Probs
    shape: tuple[int, int]

    @property
    def entropy(self) -> float:
        """In bits."""
        return entropy(self.masses)

    @property
    def lower_bound(self) -> float:
        """Bits that the entropy of no coupling of these two falls below."""
        p, q = (np.bincount(each, self.masses).astype(np.float64) for each in (self.rows, self.columns))
        return entropy(meet(p, q))

    def row(self, row: int) -> tuple[npt.NDArray[np.int64], Probs]:
        """Returns the columns of a row that are not 0, and their masses."""
        inside = slice(*np.searchsorted(self.rows, (row, row + 1)))
        return self.columns[inside], self.masses[inside]

    def column(self, column: int) -> Probs:
        """Returns the masses of a column, float64 [n]."""
        inside = self.columns == column
        return np.bincount(self.rows[inside], self.masses[inside], minlength=self.shape[0]).astype(np.float64)

    def dense(self) -> Probs:
        """Returns the joint distribution, float64 [n, k]."""
        made = np.zeros(self.shape)
        made[self.rows, self.columns] = self.masses
        return made


def min_entropy(p: Probs, q: Probs) -> Coupling:
    """Returns the greedy coupling of distributions p [n] and q [k], in O((n + k) log(n + k)).

    Among equal masses the first is taken, so that two who compute it from the same numbers get the same.

    Source: Kocaoglu et al. 2017, Algorithm 1.
    """
    ours = [(-mass, row) for row, mass in enumerate(p.tolist()) if mass > 0]
    heapq.heapify(ours)
    order = np.argsort(-q, kind="stable")[: np.count_nonzero(q)][::-1]
    theirs = list(zip((-q[order]).tolist(), order.tolist(), strict=True))  # the largest last
    split: list[tuple[float, int]] = []  # what is left of those of theirs that were larger than any of ours: a heap
    cells: list[tuple[int, int, float]] = []
    left = 1.0
    while left > RESIDUAL and ours and (theirs or split):
        want, column = heapq.heappop(split) if split and (not theirs or split[0] < theirs[-1]) else theirs.pop()
        have, row = ours[0]
        if have < want:  # both are negative: ours is the larger
            heapq.heapreplace(ours, (have - want, row))
            mass = -want
        else:
            heapq.heappop(ours)
            mass = -have
            if want < have:
                heapq.heappush(split, (want - have, column))
        cells.append((row, column, mass))
        left -= mass
    cells.sort()
    rows, columns, masses = zip(*cells, strict=True)
    found = np.array(masses)
    return Coupling(np.array(rows), np.array(columns), found / found.sum(), (len(p), len(q)))
