"""Scaling laws of drafts (Scylla, Yan et al. 2025): what more training, more layers or a larger batch would give.

The mean number of tokens that a target pass commits, tau, is taken to be linear in the logarithm of the tokens that the
draft was trained on (theorem 1.1) and of its layers (theorem 1.2), and decoding speed in that of the batch (theorem
1.3). Laws are fitted with intervals, compared with curves that level off, and used no further than they reach: no law
of this kind can hold for ever, since tau is at most the depth of the draft and one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlay.errors import UsageError

Floats = NDArray[np.float64]

LEAST_POINTS, LEAST_SPAN = 4, 8.0
REACH = 10.0  # how far beyond the data a law is believed
LEAST_ERROR = 1e-3  # of a point, so that none of them counts for everything


@dataclass(frozen=True)
class Point:
    """A measurement: a draft of `layers` layers, trained on `tokens` tokens, used at `batch`, gave `value`, with a
    standard error. `what` says of what: values of different kinds are not fitted together.
    """

    value: float
    error: float = 0.0
    tokens: float = 1.0
    layers: float = 1.0
    batch: float = 1.0
    what: str = "tau at depth 5"


@dataclass(frozen=True)
class Prediction:
    """A value with the interval that holds 95 % of measurements there, and a warning where the law is stretched."""

    value: float
    low: float
    high: float
    warning: str = ""


@dataclass(frozen=True)
class Law:
    """value = intercept + slope log10(x), fitted by weighted least squares.

    `r2` is the share of the weighted variance that it explains, `ci95` the interval of the slope, `adequate` whether no
    curve that levels off, and no power law, describes the points clearly better (by more than 2 in AICc).
    """

    x: str
    slope: float
    intercept: float
    r2: float
    ci95: tuple[float, float]
    residual: float
    adequate: bool
    best_form: str
    span: tuple[float, float]
    limits: tuple[float, float]
    _centre: float
    _spread: float
    _weight: float
    _points: int

    def predict(self, at: float) -> Prediction:
        """Returns the value at x = `at`. Raises `UsageError` for x at or below 0."""
        if not at > 0:
            raise UsageError(f"a law in {self.x} predicts at numbers above 0, not {at}")
        u = math.log10(at)
        value = self.intercept + self.slope * u
        freedom = self._points - 2
        spread = 1 / self._weight + (u - self._centre) ** 2 / self._spread + 1 / (self._weight / self._points)
        half = t_quantile(0.975, freedom) * self.residual * math.sqrt(spread)
        return _prediction(value, half, self.limits, _beyond(at, self.span))


def _beyond(at: float, span: tuple[float, float]) -> float:
    """How many times beyond the data a number is, at most 1 within them."""
    return max(at / span[1], span[0] / at)


def _prediction(value: float, half: float, limits: tuple[float, float], beyond: float) -> Prediction:
    low, high = limits
    warning = f"{beyond:.0f} times beyond the data" if beyond > REACH else ""
    if not low <= value <= high:
        warning = warning or f"the law leaves {low:g} to {high:g}, where such values are"
    at, least, most = (min(max(each, low), high) for each in (value, value - half, value + half))
    return Prediction(at, least, most, warning)


def spans(values: Sequence[float]) -> bool:
    """Tells whether a law can be fitted to points at these places: 4 different ones over a span of 8 times."""
    return len(set(values)) >= LEAST_POINTS and max(values) / min(values) >= LEAST_SPAN * (1 - 1e-9)


def fit_loglinear(points: Sequence[Point], x: str, limits: tuple[float, float] = (-math.inf, math.inf)) -> Law:
    """Fits a law in `x`, one of "tokens", "layers" and "batch". `limits` are what the value can be.

    Raises `UsageError` for fewer than 4 different x, a span of less than 8 times, or values of different kinds.
    """
    if x not in ("tokens", "layers", "batch"):
        raise UsageError(f"laws are fitted in tokens, layers or batch, not {x!r}")
    if len({point.what for point in points}) > 1:
        raise UsageError(f"points of different kinds: {', '.join(sorted({point.what for point in points}))}")
    at = np.array([float(getattr(point, x)) for point in points])
    if not len(at) or not (at > 0).all():
        raise UsageError(f"every point needs {x} above 0")
    if not spans(at.tolist()):
        raise UsageError(
            f"a law in {x} takes {LEAST_POINTS} different values over a span of {LEAST_SPAN:g} times; there are "
            f"{len(set(at.tolist()))} over {at.max() / at.min():.3g} times"
        )
    y = np.array([point.value for point in points])
    weights = 1 / np.maximum([point.error for point in points], LEAST_ERROR) ** 2
    u = np.log10(at)
    centre = float((weights * u).sum() / weights.sum())
    mean = float((weights * y).sum() / weights.sum())
    spread = float((weights * (u - centre) ** 2).sum())
    slope = float((weights * (u - centre) * (y - mean)).sum() / spread)
    left = y - mean - slope * (u - centre)
    freedom = len(y) - 2
    residual = math.sqrt(float((weights * left**2).sum()) / freedom)
    total = float((weights * (y - mean) ** 2).sum())
    half = t_quantile(0.975, freedom) * residual / math.sqrt(spread)
    forms = {
        "log-linear": aicc(float((weights * left**2).sum()), len(y), 2),
        "saturating": aicc(_saturating(at, y, weights), len(y), 3),
        "power": aicc(_power(at, y, weights), len(y), 2),
    }
    best = min(forms, key=lambda form: forms[form])
    return Law(
        x=x,
        slope=slope,
        intercept=mean - slope * centre,
        r2=1 - float((weights * left**2).sum()) / total if total > 0 else 1.0,
        ci95=(slope - half, slope + half),
        residual=residual,
        adequate=forms["log-linear"] <= forms[best] + 2,
        best_form=best,
        span=(float(at.min()), float(at.max())),
        limits=limits,
        _centre=centre,
        _spread=spread,
        _weight=float(weights.sum()),
        _points=len(y),
    )


def aicc(squares: float, points: int, parameters: int) -> float:
    """Returns Akaike's criterion, corrected for few points, of a fit with so much weighted error; infinity where there
    are too few points for so many parameters.
    """
    count = parameters + 1  # the variance is one
    if points - count - 1 <= 0:
        return math.inf
    return points * math.log(max(squares, 1e-12) / points) + 2 * count + 2 * count * (count + 1) / (points - count - 1)


def _saturating(x: Floats, y: Floats, weights: Floats) -> float:
    """The weighted error of the best y = a - k x^-g with g from 0.05 to 1.5."""
    return min(_linear_error(x**-g, y, weights) for g in np.linspace(0.05, 1.5, 59))


def _power(x: Floats, y: Floats, weights: Floats) -> float:
    """The weighted error of the best y = k x^g, fitted to the logarithms."""
    if not (y > 0).all():
        return math.inf
    u, v = np.log(x), np.log(y)
    share = weights * y**2  # an error of v counts y times as much in y
    centre = (share * u).sum() / share.sum()
    slope = (share * (u - centre) * v).sum() / (share * (u - centre) ** 2).sum()
    fitted = np.exp((share * v).sum() / share.sum() + slope * (u - centre))
    return float((weights * (y - fitted) ** 2).sum())


def _linear_error(z: Floats, y: Floats, weights: Floats) -> float:
    centre, mean = (weights * z).sum() / weights.sum(), (weights * y).sum() / weights.sum()
    spread = (weights * (z - centre) ** 2).sum()
    slope = (weights * (z - centre) * (y - mean)).sum() / spread if spread > 0 else 0.0
    return float((weights * (y - mean - slope * (z - centre)) ** 2).sum())


def t_quantile(chance: float, freedom: int) -> float:
    """Returns the quantile of Student's t distribution, by bisection of its distribution function."""
    if freedom < 1:
        return math.inf
    low, high = 0.0, 1000.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, freedom) < chance else (low, middle)
    return (low + high) / 2


def _t_below(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: the finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cos, sin = math.cos(angle), math.sin(angle)
    total, term = 0.0, 1.0
    if freedom % 2:
        term = cos
        for k in range(1, freedom, 2):
            total += term
            term *= cos * cos * (k + 1) / (k + 2)
        return 0.5 + (angle + sin * total) / math.pi
    for k in range(0, freedom, 2):
        total += term
        term *= cos * cos * (k + 1) / (k + 2)
    return 0.5 + sin * total / 2


@dataclass(frozen=True)
class JointLaw:
    """tau = c0 + c1 log10(tokens) + c2 log10(layers) (+ c3 of both, where that lowers the error of leaving one out)."""

    coefficients: tuple[float, ...]
    left_out: float
    residual: float
    spans: tuple[tuple[float, float], tuple[float, float]]  # of tokens and of layers
    limits: tuple[float, float]
    _inverse: Floats  # of the weighted normal equations
    _weight: float  # of a point, on average
    _freedom: int

    def predict(self, tokens: float, layers: float) -> Prediction:
        """Returns tau of a draft. Raises `UsageError` for numbers at or below 0."""
        if not (tokens > 0 and layers > 0):
            raise UsageError(f"a law predicts at tokens and layers above 0, not {tokens:g} and {layers:g}")
        terms = np.array(_terms(tokens, layers)[: len(self.coefficients)])
        spread = float(terms @ self._inverse @ terms) + 1 / self._weight
        half = t_quantile(0.975, self._freedom) * self.residual * math.sqrt(spread)
        beyond = max(_beyond(at, span) for at, span in zip((tokens, layers), self.spans, strict=True))
        return _prediction(float(terms @ self.coefficients), half, self.limits, beyond)


def fit_joint(points: Sequence[Point], limits: tuple[float, float] = (-math.inf, math.inf)) -> JointLaw:
    """Fits tau in both axes; `limits` are what it can be. Raises `UsageError` where the points don't vary in both."""
    if len({point.what for point in points}) > 1:
        raise UsageError(f"points of different kinds: {', '.join(sorted({point.what for point in points}))}")
    if len({point.tokens for point in points}) < 2 or len({point.layers for point in points}) < 2 or len(points) < 5:
        raise UsageError("a joint law takes five points or more that vary in tokens and in layers")
    rows = np.array([_terms(point.tokens, point.layers) for point in points])
    y = np.array([point.value for point in points])
    weights = 1 / np.maximum([point.error for point in points], LEAST_ERROR)
    sizes = [size for size in (3, 4) if len(points) > size and np.linalg.matrix_rank(rows[:, :size]) == size]
    errors = {size: _left_out(rows[:, :size], y, weights) for size in sizes}
    if not errors:
        raise UsageError(
            "a joint law takes points of unlike tokens at like layers, and of unlike layers at like tokens"
        )
    size = min(errors, key=lambda size: errors[size])
    weighed = rows[:, :size] * weights[:, None]
    coefficients = np.linalg.lstsq(weighed, y * weights, rcond=None)[0]
    freedom = len(points) - size
    left = float((((y - rows[:, :size] @ coefficients) * weights) ** 2).sum())
    tokens, layers = ([getattr(point, name) for point in points] for name in ("tokens", "layers"))
    return JointLaw(
        coefficients=tuple(coefficients.tolist()),
        left_out=errors[size],
        residual=math.sqrt(left / freedom),
        spans=((min(tokens), max(tokens)), (min(layers), max(layers))),
        limits=limits,
        _inverse=np.linalg.inv(weighed.T @ weighed),
        _weight=float((weights**2).mean()),
        _freedom=freedom,
    )


def _terms(tokens: float, layers: float) -> list[float]:
    a, b = math.log10(tokens), math.log10(layers)
    return [1.0, a, b, a * b]


def _left_out(rows: Floats, y: Floats, weights: Floats) -> float:
    """The mean square error at each point of the fit to the others."""
    errors = []
    for out in range(len(y)):
        kept = np.arange(len(y)) != out
        if np.linalg.matrix_rank(rows[kept]) < rows.shape[1]:
            return math.inf
        fit = np.linalg.lstsq(rows[kept] * weights[kept, None], y[kept] * weights[kept], rcond=None)[0]
        errors.append((y[out] - rows[out] @ fit) ** 2)
    return float(np.mean(errors))


def chain_tokens(acceptance: float, depth: int) -> float:
    """Returns the expected tokens of a round with a chain of `depth`, each taken with the same probability: (1 -
    a^(depth + 1)) / (1 - a) (Leviathan et al. 2023, equation 1).
    """
    return float(depth + 1) if acceptance >= 1 else (1 - acceptance ** (depth + 1)) / (1 - acceptance)


def even_acceptance(tokens: float, depth: int) -> float:
    """Returns the probability at which a chain of `depth` gives so many tokens a round: `chain_tokens` inverted."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if chain_tokens(middle, depth) < tokens else (low, middle)
    return (low + high) / 2


def expected_tokens(acceptances: Sequence[float]) -> float:
    """Returns the expected tokens of a round with a chain whose i-th token is taken with `acceptances[i]`, if those
    before it are: the block efficiency.
    """
    total, reach = 1.0, 1.0
    for share in acceptances:
        reach *= share
        total += reach
    return total


def memory_bound_speedup(block_efficiency: float, cost: float, depth: int) -> float:
    """Returns the speed-up where time is the reading of weights: block efficiency / (1 + cost x depth), `cost` being
    the draft's size over the target's.
    """
    return block_efficiency / (1 + cost * depth)


@dataclass(frozen=True)
class Choice:
    """A draft to train and how to use it: `speedup` over plain decoding, with the interval that tau's gives it."""

    layers: int
    tokens: float
    depth: int
    tau: float
    throughput: float
    speedup: float
    low: float
    high: float


def at_depth(tau: Prediction, measured: int, depth: int) -> Prediction:
    """Returns what a chain of `depth` gives where one of `measured` gives `tau`, if every token of it is taken with the
    same probability.
    """
    value, low, high = (
        chain_tokens(even_acceptance(tokens, measured), depth) for tokens in (tau.value, tau.low, tau.high)
    )
    return Prediction(value, low, high, tau.warning)


def choose(
    tau: Callable[[int, int], Prediction],
    seconds: Callable[[int, int], float],
    plain: float,
    *,
    tokens: float,
    batch: int = 1,
    layers: Sequence[int] = (1, 2, 3, 4, 6, 8, 10),
    depths: Sequence[int] = (1, 2, 3, 4, 5, 6, 8),
    fits: Callable[[int], bool] = lambda layers: True,
) -> tuple[Choice | None, list[Choice]]:
    """Returns the configuration with the highest predicted throughput, or None where none is sure to beat plain
    decoding, and all of them, the best first.

    `tau(layers, depth)` predicts the tokens of a round and `seconds(layers, depth)` what it takes with `batch` requests
    together, `plain` what one without drafts does; `fits(layers)` says whether a size is within the budget.
    """
    found = []
    for size in filter(fits, layers):
        for depth in depths:
            predicted = tau(size, depth)
            took = seconds(size, depth)
            gains = [value * plain / took for value in (predicted.value, predicted.low, predicted.high)]
            found.append(Choice(size, tokens, depth, predicted.value, batch * predicted.value / took, *gains))
    found.sort(key=lambda choice: -choice.throughput)
    best = found[0] if found and found[0].low > 1 else None
    return best, found


def read_points(rows: Sequence[dict[str, Any]]) -> list[Point]:
    """Returns the points in a table. Raises `UsageError` for a row that is none."""
    known = set(Point.__dataclass_fields__)
    points = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or "value" not in row or set(row) - known:
            raise UsageError(f"point {number} must be an object with value and any of {', '.join(sorted(known))}")
        try:
            numbers = {name: float(value) for name, value in row.items() if name != "what"}
            sizes = [numbers[name] for name in ("tokens", "layers", "batch") if name in numbers]
            if not all(map(math.isfinite, numbers.values())) or not all(size > 0 for size in sizes):
                raise ValueError
            points.append(replace(Point(0.0), **numbers, what=str(row.get("what", Point.what))))
        except (TypeError, ValueError):
            raise UsageError(f"point {number} must hold numbers, and sizes above 0: {row!s:.80}") from None
    return points
