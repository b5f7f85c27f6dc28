"""The largest batch of each bucket that fits (the OOMptimizer's search), whatever says what fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from outlay.batching.buckets import Bin, Buckets
from outlay.errors import UsageError

Fits = Callable[[int, float, float], bool]
"""Tells whether a training step fits, by the size of its batch and the two lengths of its examples."""


@dataclass(frozen=True)
class OomSearch:
    """Doubles, then halves the interval, until it is narrow enough (Algorithm D)."""

    fits: Fits
    """What fits: one of `outlay.batching.oracles`, or any function of the batch and its two lengths."""
    start: int = 32
    """Batch that is tried first for the longest bucket."""
    rel_gap: float = 0.05
    """Share of the least batch that failed, within which the largest that fitted is the answer."""
    most: int = 1 << 20
    """Batch above which nothing is tried."""

    def __post_init__(self) -> None:
        if self.start < 1 or not 0 <= self.rel_gap < 1 or self.most < 1:
            raise UsageError("start and most must be 1 or more, and rel_gap from 0 on and below 1")

    def largest(self, input: float, output: float = 0.0, start: int | None = None) -> int:
        """Returns a batch that fits, within `rel_gap` of the largest one.

        Args:
            input: Input length of every example.
            output: Output length of every example.
            start: Batch that is tried first.

        Raises:
            UsageError: Not even one example fits.
        """
        fitted, failed = 0, self.most + 1
        batch = min(start or self.start, self.most)
        while failed - fitted > 1 and (failed - fitted) / failed > self.rel_gap:
            if self.fits(batch, input, output):
                fitted = batch
                batch = min(2 * batch, self.most) if failed > self.most else round((fitted + failed) / 2)
            else:
                failed = batch
                batch = round((fitted + failed) / 2)  # half of the batch as long as nothing fitted
        if not fitted:
            raise UsageError(
                f"not even one example of input length {input:g} and output length {output:g} fits; "
                "give more memory or time, or leave out longer examples"
            )
        return fitted

    def profile(self, buckets: Buckets) -> dict[int, int]:
        """Returns the batch of each bucket, by its number; full-size examples are tried, the longest bucket first.

        Raises:
            UsageError: A bucket fits no example.
        """
        sizes, start = dict[int, int](), self.start
        for place in reversed(range(len(buckets))):
            edge = buckets.bins[place]
            sizes[place] = self.largest(edge.input, edge.output, start)
            start = min(2 * sizes[place], self.most)
        return dict(sorted(sizes.items()))


def merge_equal(buckets: Buckets, sizes: Mapping[int, int]) -> tuple[Buckets, dict[int, int]]:
    """Merges neighbouring one-dimensional buckets of the same batch size, which would only scatter their examples.

    Returns:
        The buckets and their batch sizes. Buckets of two dimensions come back as they are.
    """
    if len({edge.input for edge in buckets}) < len(buckets) or any(edge.max_ratio < float("inf") for edge in buckets):
        return buckets, dict(sizes)
    merged: list[tuple[Bin, int]] = []
    for place, edge in enumerate(buckets):
        if merged and merged[-1][1] == sizes[place]:
            edge = Bin(edge.input, max(edge.output, merged.pop()[0].output))
        merged.append((edge, sizes[place]))
    return Buckets(tuple(edge for edge, _ in merged), buckets.strict), {i: size for i, (_, size) in enumerate(merged)}
