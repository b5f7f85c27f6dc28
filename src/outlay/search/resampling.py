"""Resampling: which particles go on, drawn in proportion to their weights.

Each scheme gives a particle of weight w as many offspring as n times w on average; they differ in the variance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def effective_sample_size(weights: Tensor) -> float:
    """Returns 1 / sum of w^2 of normalised weights [n]: n where all are equal, 1 where one has everything."""
    return float(1 / weights.double().square().sum())


def _multinomial(weights: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Draws each ancestor independently."""
    return _at(weights, torch.rand(count, generator=generator, dtype=torch.float64))


def _stratified(weights: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Draws one ancestor in each of `count` equal parts of [0, 1)."""
    places = torch.arange(count, dtype=torch.float64)
    return _at(weights, (places + torch.rand(count, generator=generator, dtype=torch.float64)) / count)


def _systematic(weights: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """As `_stratified`, with the same offset in each part: the numbers of offspring differ from n w by less than 1."""
    places = torch.arange(count, dtype=torch.float64)
    return _at(weights, (places + torch.rand(1, generator=generator, dtype=torch.float64)) / count)


def _residual(weights: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Gives each the whole part of n w, and draws the rest in proportion to what is left of it."""
    scaled = weights.double() * count
    whole = scaled.floor().long()
    kept = torch.repeat_interleave(torch.arange(len(weights)), whole).tolist()
    rest = count - len(kept)
    if rest == 0:
        return list(kept)
    left = scaled - whole
    return sorted([*kept, *_multinomial(left / left.sum(), rest, generator)])


Scheme = Callable[[Tensor, int, torch.Generator], list[int]]
"""(normalised weights [n], count, generator) -> the ancestors of `count` offspring, in rising order where drawn so."""

SCHEMES: Mapping[str, Scheme] = {
    "multinomial": _multinomial,
    "systematic": _systematic,
    "stratified": _stratified,
    "residual": _residual,
}


def _at(weights: Tensor, points: Tensor) -> list[int]:
    """Returns for each point of [0, 1) the particle in whose share of the weights it lies, the first ones first."""
    borders = weights.double().cumsum(0)
    found = torch.searchsorted(borders / borders[-1], points.sort().values, right=True)
    return [min(int(place), len(weights) - 1) for place in found]
