"""FDW: which coefficient of a kernel's transform belongs to which frequency group."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from outlay.errors import UsageError

ORDERS = {"official": 0, "paired-v1": 1}


@lru_cache(maxsize=256)
def frequency_groups(rows: int, columns: int, groups: int, order: str, kept: float = 1.0) -> np.ndarray[Any, Any]:
    """Assigns the coefficients of a real `rows` x `columns` matrix to groups, low frequencies first.

    Args:
        rows: of the matrix.
        columns: of the matrix; its transform has `columns // 2 + 1`.
        groups: how many; sizes differ by rounding, and by one where a boundary would split a conjugate pair.
        order: "paired-v1" or "official".
        kept: share of the coefficients that belong to a group.

    Returns:
        `[rows, columns // 2 + 1]`, int16: the group of each coefficient, -1 for what is not kept.

    Raises:
        UsageError: for more groups than coefficients.
    """
    half = columns // 2 + 1
    ranked = _official_order(rows, columns) if order == "official" else _paired_order(rows, columns)
    count = max(1, int(ranked.size * kept))
    if groups > count:
        raise UsageError(
            f"{groups} frequency groups are more than the {count} coefficients of a {rows}x{columns} matrix"
        )
    of = np.full(ranked.size, -1, np.int16)
    of[ranked[:count]] = np.arange(count) * groups // count
    if order != "official":
        first, second = ranked[:-1], ranked[1:]
        for one, other in zip(first, second, strict=True):
            if of[one] != of[other] and _conjugates(one, other, rows, columns):
                of[other] = of[one]
    return of.reshape(rows, half)


def _paired_order(rows: int, columns: int) -> np.ndarray[Any, Any]:
    """Flat places by radius, then so that the two of a conjugate pair are neighbours; the same on every machine."""
    u, v = np.divmod(np.arange(rows * (columns // 2 + 1)), columns // 2 + 1)
    near = np.minimum(u, rows - u)
    radius = np.sqrt((near / rows) ** 2 + (v / columns) ** 2)
    return np.lexsort((u, near, v, np.round(radius, 9)))


def _official_order(rows: int, columns: int) -> np.ndarray[Any, Any]:
    """The order that the authors' code finds: by torch's sort of float32 radii, which does not promise to be stable."""
    grid = torch.stack(torch.meshgrid(torch.fft.fftfreq(rows), torch.fft.rfftfreq(columns), indexing="ij"), dim=-1)
    return torch.sort(torch.norm(grid, dim=-1).view(-1))[1].numpy()


def _conjugates(one: int, other: int, rows: int, columns: int) -> bool:
    """Whether two coefficients are each other's conjugates in any real matrix; only the outer columns hold both."""
    (u, v), (w, x) = divmod(int(one), columns // 2 + 1), divmod(int(other), columns // 2 + 1)
    return v == x and (v == 0 or 2 * v == columns) and (u + w) % rows == 0
