"""Weighted least squares: lines, the curves that they are compared with, and the quantiles of their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """y = intercept + slope u, fitted to points with weights."""

    slope: float
    intercept: float
    points: int
    centre: float
    """Weighted mean of u."""
    spread: float
    """Weighted sum of squares of u around its mean."""
    weight: float
    """Sum of the weights."""
    squares: float
    """Weighted sum of the squared errors."""
    total: float
    """Weighted sum of squares of y around its mean."""

    @property
    def r2(self) -> float:
        """The share of the weighted variance that the line explains."""
        return 1 - self.squares / self.total if self.total > 0 else 1.0

    def slope_margin(self) -> float:
        """Returns half the width of the slope's 95 % interval."""
        return self._scale() / math.sqrt(self.spread)

    def margin(self, u: float) -> float:
        """Returns half the width of the interval that holds 95 % of new measurements at `u`, of average weight."""
        return self._scale() * math.sqrt(
            1 / self.weight + (u - self.centre) ** 2 / self.spread + self.points / self.weight
        )

    def _scale(self) -> float:
        freedom = self.points - 2
        return t_quantile(0.975, freedom) * math.sqrt(self.squares / freedom)


def fit_line(u: Floats, y: Floats, weights: Floats) -> Line:
    """Fits a line by weighted least squares, with u centred; all arrays are [points]."""
    weight = weights.sum()
    centre, mean = (weights * u).sum() / weight, (weights * y).sum() / weight
    spread = (weights * (u - centre) ** 2).sum()
    slope = (weights * (u - centre) * (y - mean)).sum() / spread if spread > 0 else 0.0
    return Line(
        slope=float(slope),
        intercept=float(mean - slope * centre),
        points=len(y),
        centre=float(centre),
        spread=float(spread),
        weight=float(weight),
        squares=float((weights * (y - mean - slope * (u - centre)) ** 2).sum()),
        total=float((weights * (y - mean) ** 2).sum()),
    )


def saturating_error(x: Floats, y: Floats, weights: Floats) -> float:
    """Returns the weighted squared error of the best y = a - k x^-g with g from 0.05 to 1.5."""
    z = x ** -np.linspace(0.05, 1.5, 59)[:, None]  # a row for each g
    share = weights / weights.sum()
    z, y = z - (z @ share)[:, None], y - y @ share
    spread = z**2 @ weights
    k = np.divide(z @ (weights * y), spread, out=np.zeros_like(spread), where=spread > 0)
    return float((((y - k[:, None] * z) ** 2) @ weights).min())


def power_error(x: Floats, y: Floats, weights: Floats) -> float:
    """Returns the weighted squared error of the best y = k x^g, fitted to the logarithms."""
    if not (y > 0).all():
        return math.inf
    line = fit_line(np.log(x), np.log(y), weights * y**2)  # an error of log y counts y times as much in y
    fitted = np.exp(line.intercept + line.slope * np.log(x))
    return float((weights * (y - fitted) ** 2).sum())


def aicc(squares: float, points: int, parameters: int) -> float:
    """Returns Akaike's criterion with the correction for few points.

    Args:
        squares: Weighted squared error of the fit.
        points: Points that were fitted.
        parameters: Parameters of the curve, without the variance.

    Returns:
        The criterion, infinity where the points are too few for the parameters.
    """
    count = parameters + 1  # with the variance
    if points - count - 1 <= 0:
        return math.inf
    return points * math.log(max(squares, 1e-12) / points) + 2 * count + 2 * count * (count + 1) / (points - count - 1)


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """Returns a quantile of Student's t distribution from 0.5 on, by bisection of its distribution function."""
    if freedom < 1:
        return math.inf
    low, high = 0.0, 1000.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _t_below(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: the finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cos, sin = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    total, term = 0.0, cos if odd else 1.0
    for k in range(odd, freedom, 2):
        total += term
        term *= cos * cos * (k + 1) / (k + 2)
    return 0.5 + (angle + sin * total) / math.pi if odd else 0.5 + sin * total / 2
