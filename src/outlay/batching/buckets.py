"""Buckets of one or two lengths: equal mass in each, outliers discarded, and which bucket an example falls into."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from outlay.errors import UsageError

Lengths = Sequence[float] | NDArray[Any]

BUCKETS, SUB_BUCKETS = 30, 2  # the defaults of the released tool
DECIMALS = 3  # to which edges of input lengths are rounded


class Bin(NamedTuple):
    """The greatest lengths of a bucket's examples, both inclusive."""

    input: float
    """Greatest input length: seconds, frames or tokens."""
    output: float = 0.0
    """Greatest output length, in tokens; 0 where examples have one length."""
    max_ratio: float = math.inf
    """Greatest output length over input length that strict lookup accepts."""


@dataclass(frozen=True)
class Buckets:
    """Buckets in ascending order of their edges."""

    bins: tuple[Bin, ...]
    """Edges of the buckets."""
    strict: bool = True
    """Whether an example belongs to the bins of the first input edge that holds it, or to none; else (lenient) it goes
    to the first bin both of whose edges hold it."""
    _inputs: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Checks the edges.

        Raises:
            UsageError: There is no bin, an edge is not a number, or the bins don't ascend.
        """
        if not self.bins:
            raise UsageError("there are no buckets; give at least one")
        for edge in self.bins:
            if not (math.isfinite(edge.input) and math.isfinite(edge.output) and edge.max_ratio >= 0):
                raise UsageError(f"the edges of a bucket must be numbers, not {tuple(edge)}")
        for low, high in zip(self.bins, self.bins[1:], strict=False):
            if low[:2] >= high[:2]:
                raise UsageError(f"buckets must ascend, by input and then by output; {high[:2]} comes after {low[:2]}")
        object.__setattr__(self, "_inputs", tuple(edge.input for edge in self.bins))

    def __len__(self) -> int:
        return len(self.bins)

    def __iter__(self) -> Iterator[Bin]:
        return iter(self.bins)

    @classmethod
    def fit_1d(cls, inputs: Lengths, n: int = BUCKETS, outputs: Lengths | None = None) -> Buckets:
        """Fits buckets of equal total input length (Algorithm A).

        Args:
            inputs: [examples], input lengths.
            n: Number of buckets; fewer come out where single examples are longer than a bucket's share.
            outputs: [examples], output lengths; a bucket's output edge is the greatest of its examples.

        Raises:
            UsageError: There are no examples, fewer than buckets, or a length is no length.
        """
        lengths = checked(inputs, "input")
        _check_count(n, len(lengths))
        edges = np.unique([*equal_mass_edges(lengths, n), lengths.max()])
        if outputs is None:
            return cls(tuple(Bin(float(edge)) for edge in edges))
        others, place = _paired(lengths, outputs), np.searchsorted(edges, lengths)
        return cls(tuple(Bin(float(edge), float(others[place == i].max())) for i, edge in enumerate(edges)))

    @classmethod
    def fit_2d(
        cls, inputs: Lengths, outputs: Lengths, n: int = BUCKETS, sub: int = SUB_BUCKETS, sigma: float = 4.0
    ) -> Buckets:
        """Fits buckets of equal total input length, cut into sub-buckets of equal total output length (Algorithm B).

        In each bucket, examples whose ratio of output to input is more than `sigma` standard deviations above the mean
        are left out; the greatest ratio of the others is what strict lookup accepts. Where edges coincide, as they do
        for skewed data, the buckets are one, with the sub-buckets of all of them.

        Args:
            inputs: [examples], input lengths, above 0.
            outputs: [examples], output lengths in tokens, with all tokens that the decoder reads.
            n: Number of buckets of the input length.
            sub: Sub-buckets of each.
            sigma: Standard deviations above which a ratio is an outlier.

        Raises:
            UsageError: There are no examples, fewer than buckets, or a length is no length.
        """
        lengths = checked(inputs, "input")
        others = _paired(lengths, outputs)
        _check_count(n, len(lengths))
        if sub < 1 or not sigma > 0:
            raise UsageError(f"sub must be 1 or more and sigma above 0, not {sub} and {sigma}")
        if not lengths.min() > 0:
            raise UsageError("input lengths must be above 0 for two-dimensional buckets")
        times = Counter(round(edge, DECIMALS) for edge in equal_mass_edges(lengths, n))
        times[_rounded_up(float(lengths.max()))] += 1
        edges = sorted(times)
        place = np.searchsorted(edges, lengths)
        bins = []
        for i, edge in enumerate(edges):
            here = place == i
            if here.any():
                bins += _sub_bins(float(edge), lengths[here], others[here], sub * times[edge], sigma)
        return cls(tuple(bins))

    def locate(self, input: float, output: float = 0.0) -> int | None:
        """Returns the number of the bucket of an example; None where it fits none (Algorithm C).

        Raises:
            UsageError: A length is NaN or infinite.
        """
        if not (math.isfinite(input) and math.isfinite(output)):
            raise UsageError(f"lengths must be numbers, not {input} and {output}")
        first = bisect_left(self._inputs, input)
        if first == len(self.bins):
            return None
        if not self.strict:
            return next((i for i in range(first, len(self.bins)) if self.bins[i].output >= output), None)
        edge = self._inputs[first]
        found = bisect_left(self.bins, (edge, output), key=lambda each: (each.input, each.output))
        if found == len(self.bins) or self.bins[found].input != edge:
            return None
        most = self.bins[found].max_ratio
        return found if most == math.inf or (input > 0 and output / input <= most) else None

    def as_json(self) -> dict[str, Any]:
        """Returns the buckets as JSON can hold them; `from_json` reads them."""
        rows = [[edge.input, edge.output, edge.max_ratio if math.isfinite(edge.max_ratio) else None] for edge in self]
        return {"strict": self.strict, "bins": rows}

    @classmethod
    def from_json(cls, held: Any) -> Buckets:
        """Reads what `as_json` returned.

        Raises:
            UsageError: It is something else.
        """
        try:
            bins = [
                Bin(float(row[0]), float(row[1]), math.inf if row[2] is None else float(row[2])) for row in held["bins"]
            ]
            return cls(tuple(bins), bool(held["strict"]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, UsageError):
                raise
            wanted = '{"strict": true, "bins": [[input, output, ratio], ...]}'
            raise UsageError(f"these are no buckets; they are {wanted}") from error


def equal_mass_edges(lengths: Lengths, n: int) -> list[float]:
    """Returns the inner edges of `n` buckets of equal total length: at most n - 1, ascending.

    The lengths are gone through in ascending order; where the sum since the last edge exceeds the share of a bucket,
    the present length is the next edge.
    """
    ordered = np.sort(np.asarray(lengths, dtype=np.float64))
    share, edges, total = ordered.sum() / n, [], 0.0
    for length in ordered.tolist():
        if total > share:
            edges.append(length)
            total = 0.0
        total += length
    return edges


def checked(lengths: Lengths, which: str) -> NDArray[np.float64]:
    """Returns lengths as an array, float64 [examples].

    Raises:
        UsageError: There are none, or one is NaN, infinite or below 0.
    """
    found = np.asarray(lengths, dtype=np.float64)
    if found.ndim != 1 or not len(found):
        raise UsageError(f"there are no {which} lengths; give a list of one or more")
    wrong = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
    if len(wrong):
        raise UsageError(f"the {which} length of example {wrong[0]} must be 0 or more, not {found[wrong[0]]:g}")
    return found


def _sub_bins(
    edge: float, inputs: NDArray[np.float64], outputs: NDArray[np.float64], sub: int, sigma: float
) -> list[Bin]:
    """Returns the bins of one input edge."""
    ratios = outputs / inputs
    spread = ratios.std()
    kept = ratios - ratios.mean() <= sigma * spread if spread > 0 else np.ones(len(ratios), dtype=bool)
    most = float(ratios[kept].max())
    ends = sorted({*equal_mass_edges(outputs[kept], sub), float(outputs[kept].max())})
    return [Bin(edge, end, most) for end in ends]


def _paired(inputs: NDArray[np.float64], outputs: Lengths) -> NDArray[np.float64]:
    others = checked(outputs, "output")
    if len(others) != len(inputs):
        raise UsageError(f"there are {len(inputs)} input lengths and {len(others)} output lengths; give one of each")
    return others


def _check_count(n: int, examples: int) -> None:
    if n < 1:
        raise UsageError(f"the number of buckets must be 1 or more, not {n}")
    if n > examples:
        raise UsageError(f"{examples} examples are too few for {n} buckets; ask for {examples} or fewer")


def _rounded_up(edge: float) -> float:
    """Returns an edge of `DECIMALS` that the longest example still fits."""
    rounded = round(edge, DECIMALS)
    return rounded if rounded >= edge else round(rounded + 10**-DECIMALS, DECIMALS)
