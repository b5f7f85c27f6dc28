"""Scaling laws of drafts (Scylla, Yan et al. 2025): what more training, more layers or a larger batch would give.

tau, the mean acceptance length, is taken to be linear in the logarithm of the draft's training tokens (theorem 1.1) and
of its layers (theorem 1.2), and decoding speed in that of the batch (theorem 1.3). A law is fitted with intervals,
compared with curves that level off, and trusted only near its data: none of this kind can hold for ever, since tau is
at most the depth of the draft and one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from outlay.errors import UsageError
from outlay.scaling.points import Point
from outlay.scaling.regression import Floats, Line, aicc, fit_line, power_error, saturating_error, t_quantile

LEAST_POINTS = 4  # different values of x that a law takes (the specification's)
LEAST_SPAN = 8.0  # largest x over smallest x that a law takes (the specification's)
REACH = 10.0  # times beyond the data from which a prediction carries a warning (the specification's)
LEAST_ERROR = 1e-3  # of a point's value, so that no point outweighs all others (the specification's)
CLEARLY = 2.0  # AICc by which another curve must be better for a law to be inadequate (the usual threshold)
UNLIMITED = (-math.inf, math.inf)


@dataclass(frozen=True)
class Prediction:
    """A predicted value with the interval that holds 95 % of measurements."""

    value: float
    low: float
    high: float
    warning: str = ""
    """Why it is not to be trusted: it lies far beyond the data, or outside of the possible values."""


@dataclass(frozen=True)
class ScalingLaw:
    """value = intercept + slope log10(x)."""

    x: str
    """The axis: "tokens", "layers" or "batch"."""
    line: Line
    adequate: bool
    """Whether neither a curve that levels off nor a power law describes the points clearly better, by AICc."""
    best_form: str
    """The curve with the lowest AICc: "log-linear", "saturating" or "power"."""
    span: tuple[float, float]
    """The smallest and the largest x of the points."""
    limits: tuple[float, float]
    """The smallest and the largest possible value."""

    @property
    def slope(self) -> float:
        """What the value gains when x grows tenfold."""
        return self.line.slope

    @property
    def intercept(self) -> float:
        """The value at x = 1."""
        return self.line.intercept

    @property
    def r2(self) -> float:
        """The share of the weighted variance that the law explains."""
        return self.line.r2

    @property
    def ci95(self) -> tuple[float, float]:
        """The 95 % interval of the slope."""
        margin = self.line.slope_margin()
        return self.slope - margin, self.slope + margin

    def predict(self, at: float) -> Prediction:
        """Predicts the value at x = `at`.

        Raises:
            UsageError: `at` is not above 0.
        """
        if not at > 0:
            raise UsageError(f"a law in {self.x} predicts at numbers above 0, not {at}")
        u = math.log10(at)
        return _prediction(self.intercept + self.slope * u, self.line.margin(u), self.limits, _beyond(at, self.span))


def spans(values: Sequence[float]) -> bool:
    """Tells whether points at these places allow a law: `LEAST_POINTS` different ones over `LEAST_SPAN` times."""
    return len(set(values)) >= LEAST_POINTS and max(values) / min(values) >= LEAST_SPAN * (1 - 1e-9)


def fit_loglinear(points: Sequence[Point], x: str, limits: tuple[float, float] = UNLIMITED) -> ScalingLaw:
    """Fits a law by weighted least squares.

    Args:
        points: Measurements of one kind; other axes than `x` are ignored.
        x: "tokens", "layers" or "batch".
        limits: The smallest and the largest possible value.

    Raises:
        UsageError: The points are of different kinds, or at too few places, or at places not above 0.
    """
    if x not in ("tokens", "layers", "batch"):
        raise UsageError(f"laws are fitted in tokens, layers or batch, not {x!r}")
    _refuse_mixed(points)
    at = np.array([float(getattr(point, x)) for point in points])
    if not len(at) or not (at > 0).all():
        raise UsageError(f"every point needs {x} above 0")
    if not spans(at.tolist()):
        raise UsageError(
            f"a law in {x} takes {LEAST_POINTS} different values over a span of {LEAST_SPAN:g} times; there are "
            f"{len(set(at.tolist()))} over {at.max() / at.min():.3g} times"
        )
    y, weights = np.array([point.value for point in points]), _weights(points)
    line = fit_line(np.log10(at), y, weights)
    criteria = {
        "log-linear": aicc(line.squares, len(y), 2),
        "saturating": aicc(saturating_error(at, y, weights), len(y), 3),
        "power": aicc(power_error(at, y, weights), len(y), 2),
    }
    best = min(criteria, key=lambda form: criteria[form])
    adequate = criteria["log-linear"] <= criteria[best] + CLEARLY
    return ScalingLaw(x, line, adequate, best, (float(at.min()), float(at.max())), limits)


@dataclass(frozen=True)
class JointLaw:
    """tau = c0 + c1 log10(tokens) + c2 log10(layers), perhaps with c3 log10(tokens) log10(layers)."""

    coefficients: tuple[float, ...]
    """c0, c1, c2; and c3 where it lowers the error of points that are left out."""
    residual: float
    """Weighted standard deviation of the points from the law."""
    spans: tuple[tuple[float, float], tuple[float, float]]
    """The smallest and the largest tokens and layers of the points."""
    limits: tuple[float, float]
    """The smallest and the largest possible value."""
    covariance: Floats
    """Inverse of the weighted normal equations, [coefficients, coefficients]."""
    weight: float
    """Mean weight of a point."""
    freedom: int
    """Points less coefficients."""

    def predict(self, tokens: float, layers: float) -> Prediction:
        """Predicts tau of a draft.

        Raises:
            UsageError: A number is not above 0.
        """
        if not (tokens > 0 and layers > 0):
            raise UsageError(f"a law predicts at tokens and layers above 0, not {tokens:g} and {layers:g}")
        terms = np.array(_terms(tokens, layers)[: len(self.coefficients)])
        variance = float(terms @ self.covariance @ terms) + 1 / self.weight
        margin = t_quantile(0.975, self.freedom) * self.residual * math.sqrt(variance)
        beyond = max(_beyond(at, span) for at, span in zip((tokens, layers), self.spans, strict=True))
        return _prediction(float(terms @ self.coefficients), margin, self.limits, beyond)


def fit_joint(points: Sequence[Point], limits: tuple[float, float] = UNLIMITED) -> JointLaw:
    """Fits tau in tokens and layers; `limits` are its smallest and largest possible value.

    Raises:
        UsageError: The points are of different kinds, or don't vary in both axes independently.
    """
    _refuse_mixed(points)
    if len({point.tokens for point in points}) < 2 or len({point.layers for point in points}) < 2 or len(points) < 5:
        raise UsageError("a joint law takes five points or more that vary in tokens and in layers")
    rows = np.array([_terms(point.tokens, point.layers) for point in points])
    y, weights = np.array([point.value for point in points]), np.sqrt(_weights(points))
    sizes = [size for size in (3, 4) if len(points) > size and np.linalg.matrix_rank(rows[:, :size]) == size]
    if not sizes:
        raise UsageError(
            "a joint law takes points of unlike tokens at like layers, and of unlike layers at like tokens"
        )
    size = min(sizes, key=lambda size: _left_out_error(rows[:, :size], y, weights))

    weighted = rows[:, :size] * weights[:, None]
    coefficients = np.linalg.lstsq(weighted, y * weights, rcond=None)[0]
    freedom = len(points) - size
    squares = float(((y * weights - weighted @ coefficients) ** 2).sum())
    tokens, layers = ([getattr(point, name) for point in points] for name in ("tokens", "layers"))
    return JointLaw(
        coefficients=tuple(coefficients.tolist()),
        residual=math.sqrt(squares / freedom),
        spans=((min(tokens), max(tokens)), (min(layers), max(layers))),
        limits=limits,
        covariance=np.linalg.inv(weighted.T @ weighted),
        weight=float((weights**2).mean()),
        freedom=freedom,
    )


def _terms(tokens: float, layers: float) -> list[float]:
    a, b = math.log10(tokens), math.log10(layers)
    return [1.0, a, b, a * b]


def _left_out_error(rows: Floats, y: Floats, weights: Floats) -> float:
    """Returns the mean squared error at each point of the fit to the others."""
    errors = []
    for out in range(len(y)):
        others = np.arange(len(y)) != out
        if np.linalg.matrix_rank(rows[others]) < rows.shape[1]:
            return math.inf
        fit = np.linalg.lstsq(rows[others] * weights[others, None], y[others] * weights[others], rcond=None)[0]
        errors.append((y[out] - rows[out] @ fit) ** 2)
    return float(np.mean(errors))


def _weights(points: Sequence[Point]) -> Floats:
    return 1 / np.maximum([point.error for point in points], LEAST_ERROR) ** 2


def _refuse_mixed(points: Sequence[Point]) -> None:
    kinds = sorted({point.what for point in points})
    if len(kinds) > 1:
        raise UsageError(f"points of different kinds: {', '.join(kinds)}")


def _beyond(at: float, span: tuple[float, float]) -> float:
    """Returns how many times beyond the data a number lies, at most 1 within them."""
    return max(at / span[1], span[0] / at)


def _prediction(value: float, margin: float, limits: tuple[float, float], beyond: float) -> Prediction:
    low, high = limits
    warning = f"{beyond:.0f} times beyond the data" if beyond > REACH else ""
    if not low <= value <= high:
        warning = warning or f"the law leaves {low:g} to {high:g}, the possible values"
    at, least, most = (min(max(each, low), high) for each in (value, value - margin, value + margin))
    return Prediction(at, least, most, warning)
