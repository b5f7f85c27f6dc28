"""N:M patterns: the N largest of every M consecutive weights are kept (Bambhaniya et al. 2024, arXiv 2402.04744)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from outlay.errors import UsageError

Dim = Literal["in", "out"]
PAIRWISE = 16  # weights of a group up to which comparing all pairs is quicker than sorting: 55 and 73 ms at 1:16


@dataclass(frozen=True)
class Pattern:
    """At most `n` weights of every `m` consecutive ones are not zero."""

    n: int
    """Weights that are kept of a group."""
    m: int
    """Consecutive weights of a group."""

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise UsageError(f"a pattern N:M keeps 1 to M weights of every M, like 2:4 or 1:16, not {self}")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """Share of the weights that are kept."""
        return self.n / self.m

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Reads "2:4".

        Raises:
            UsageError: It is no pattern.
        """
        found = re.fullmatch(r"(\d+):(\d+)", text.strip())
        if found is None:
            raise UsageError(f"a pattern is written N:M, like 2:4 or 1:16, not {text!r}")
        return cls(int(found[1]), int(found[2]))


def nm_mask(weight: Tensor, pattern: Pattern, dim: Dim = "in") -> Tensor:
    """Marks the weights of largest magnitude in each group; among equals the first.

    Args:
        weight: [out, in], or a convolution's [out, in, ...].
        pattern: The pattern.
        dim: Along which dimension groups lie.

    Returns:
        bool, of the shape of `weight`, with exactly n of every m set.

    Raises:
        UsageError: The dimension isn't a multiple of m.
    """
    groups = to_groups(weight.abs(), pattern.m, dim)
    return from_groups(largest(groups, pattern.n), weight.shape, dim)


def largest(scores: Tensor, n: int) -> Tensor:
    """Marks the n largest of each row, among equals the first; [groups, m] -> bool [groups, m]."""
    m = scores.shape[1]
    if n == m:
        return torch.ones_like(scores, dtype=torch.bool)
    if n == 1:
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.argmax(1, keepdim=True), True)
    if m > PAIRWISE:
        order = torch.sort(scores, dim=1, descending=True, stable=True).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :n], True)
    columns = scores.T.contiguous()
    ranks = torch.zeros(columns.shape, dtype=torch.int8, device=scores.device)
    for first in range(m):
        for later in range(first + 1, m):
            below = columns[later] > columns[first]
            ranks[first] += below
            ranks[later] += ~below
    return (ranks < n).T


def violations(weight: Tensor, pattern: Pattern, dim: Dim = "in") -> int:
    """Counts the groups with more than n weights that are not zero."""
    return int(((to_groups(weight, pattern.m, dim) != 0).sum(1) > pattern.n).sum())


def to_groups(weight: Tensor, m: int, dim: Dim) -> Tensor:
    """Returns the groups of a weight, each m consecutive input ("in") or output ("out") channels: [groups, m].

    Raises:
        UsageError: The channels aren't a multiple of m.
    """
    last = weight.movedim(1 if dim == "in" else 0, -1)
    if last.shape[-1] % m:
        raise UsageError(f"groups of {m} don't divide {last.shape[-1]} {dim}put channels")
    return last.reshape(-1, m)


def from_groups(groups: Tensor, shape: torch.Size, dim: Dim) -> Tensor:
    """Undoes `to_groups` for a weight of this shape."""
    place = 1 if dim == "in" else 0
    rest = [size for axis, size in enumerate(shape) if axis != place]
    return groups.reshape(*rest, shape[place]).movedim(-1, place).contiguous()
