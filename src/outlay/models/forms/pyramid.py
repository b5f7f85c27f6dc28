"""The pyramid S(d, k) = {p in Z^d : sum |p_i| = k}: its size, the nearest point, and numbers for its points.

Fischer 1986; the same lattice codes the bands of the Opus codec. Numbers are 64 bits without sign, so a pyramid may
have up to 2^64 points.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outlay.errors import UsageError

Words = NDArray[np.uint64]


@cache
def _counts(dimension: int, pulses: int) -> tuple[tuple[int, ...], ...]:
    """N(d, k) for d up to `dimension` and k up to `pulses`: N(d, k) = N(d-1, k) + N(d, k-1) + N(d-1, k-1)."""
    rows = [[1] + [0] * pulses]
    for _ in range(dimension):
        row = [1]
        for k in range(1, pulses + 1):
            row.append(rows[-1][k] + row[-1] + rows[-1][k - 1])
        rows.append(row)
    return tuple(map(tuple, rows))


def count(dimension: int, pulses: int) -> int:
    """Returns the number of points N(d, k)."""
    return _counts(dimension, pulses)[dimension][pulses]


def index_bits(dimension: int, pulses: int) -> int:
    """Returns the bits of a point's number."""
    return (count(dimension, pulses) - 1).bit_length()


def pulses_for(dimension: int, bits: int) -> int:
    """Returns the most pulses whose points are numbered in some bits; 0 where not even one pulse's are."""
    pulses = 0
    while index_bits(dimension, pulses + 1) <= bits:
        pulses += 1
    return pulses


@cache
def _tables(dimension: int, pulses: int) -> tuple[Words, Words]:
    """N(d, k), and its sums S(d, k) over 0 to k, as words [dimension + 1, pulses + 1] modulo 2^64."""
    rows = _counts(dimension, pulses)
    if count(dimension, pulses) > 2**64:
        raise UsageError(f"{pulses} pulses in {dimension} dimensions are more than 2^64 points; take fewer")
    sums = [[sum(row[: k + 1]) % 2**64 for k in range(pulses + 1)] for row in rows[:-1]]
    return np.array([[n % 2**64 for n in row] for row in rows[:-1]], np.uint64), np.array(sums, np.uint64)


def project(groups: Tensor, pulses: int) -> Tensor:
    """Returns the points of the pyramid nearest to k w / |w|_1, exactly: the largest remainders are rounded up.

    Args:
        groups: w, float [count, d].
        pulses: k.

    Returns:
        int64 [count, d]; (k, 0, ..., 0) where w is 0. Of equal remainders the first is rounded up.
    """
    size = groups.double().abs()
    total = size.sum(1, keepdim=True)
    share = pulses * size / torch.where(total > 0, total, 1.0)
    share[total[:, 0] == 0, 0] = pulses
    floor = share.floor()
    need = pulses - floor.sum(1, keepdim=True)
    rank = (share - floor).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    points = (floor + (rank < need)).long()
    return torch.where(groups < 0, -points, points)


def refine(groups: Tensor, points: Tensor) -> Tensor:
    """Moves pulses one by one while that brings a point's direction nearer to w.

    Args:
        groups: w, float [count, d].
        points: Their points, int64 [count, d].

    Returns:
        Points of the same pyramid whose cosine with w is no smaller.
    """
    size, held = groups.double().abs(), points.abs().double()
    moving = torch.arange(len(held))
    while len(moving):
        w, q = size[moving], held[moving]
        dot, square = (w * q).sum(1), (q * q).sum(1)
        change = w[:, None, :] - w[:, :, None]  # a pulse goes from i to j
        length = square[:, None, None] + 2 * (q[:, None, :] - q[:, :, None]) + 2
        cosine = (dot[:, None, None] + change) / length.sqrt()
        cosine.masked_fill_((q == 0)[:, :, None] | torch.eye(q.shape[1], dtype=torch.bool), -1.0)
        best, at = cosine.flatten(1).max(1)
        better = best > dot / square.sqrt() * (1 + 1e-12)
        moving, at = moving[better], at[better]
        held[moving, at // q.shape[1]] -= 1
        held[moving, at % q.shape[1]] += 1
    return torch.where(groups < 0, -held, held).long()


def encode(points: Tensor) -> Tensor:
    """Numbers points: int64 [count, d] of one pyramid -> int64 [count], whose bits are the number without sign."""
    p = points.numpy()
    n, d = p.shape
    left = np.abs(p[:1]).sum(1).repeat(n)
    counts, sums = _tables(d, int(left[0]) if n else 0)
    number = np.zeros(n, np.uint64)
    for j in range(d):
        a, of = np.abs(p[:, j]), d - 1 - j
        some, after = a > 0, left - a
        below = counts[of, left] + np.uint64(2) * (sums[of, np.maximum(left - 1, 0)] - sums[of, after])
        number += np.where(some, below + np.where(p[:, j] < 0, counts[of, after], np.uint64(0)), np.uint64(0))
        left = after
    return torch.from_numpy(number.view(np.int64))


def decode(numbers: Tensor, dimension: int, pulses: int) -> Tensor:
    """Returns the points of numbers.

    Args:
        numbers: int64 [count], read without sign.
        dimension: d.
        pulses: k.

    Returns:
        int64 [count, d].

    Raises:
        UsageError: A number is none of a point's.
    """
    rest = numbers.numpy().view(np.uint64).copy()
    if len(rest) and int(rest.max()) >= count(dimension, pulses):
        raise UsageError(f"a point is numbered {int(rest.max())}, but there are {count(dimension, pulses)}")
    counts, sums = _tables(dimension, pulses)
    points = np.zeros((len(rest), dimension), np.int64)
    left = np.full(len(rest), pulses)
    for j in range(dimension):
        of = dimension - 1 - j
        some = np.flatnonzero(rest >= counts[of, left])
        k, r = left[some], rest[some] - counts[of, left[some]]
        # The least a with 2 (S(k-1) - S(k-a-1)) > r, as there are k - a sums below this.
        a = k - np.searchsorted(sums[of], sums[of, k - 1] - r // np.uint64(2), side="left")
        r -= np.uint64(2) * (sums[of, k - 1] - sums[of, k - a])
        negative = r >= counts[of, k - a]
        rest[some] = r - np.where(negative, counts[of, k - a], np.uint64(0))
        points[some, j] = np.where(negative, -a, a)
        left[some] = k - a
    return torch.from_numpy(points)
