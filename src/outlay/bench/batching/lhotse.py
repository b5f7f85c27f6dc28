"""Batches of lhotse's `DynamicBucketingSampler` on the same lengths."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from outlay.batching import BatchDuration, Buckets
from outlay.bench.peer import peer


def version() -> str:
    """Returns the version of lhotse that is installed."""
    return peer("lhotse", "lhotse")[1]


class LhotseBatches:
    """The batches of an epoch, as lists of indices. Its lengths are durations; tokens don't count for it."""

    def __init__(self, lengths: Sequence[tuple[float, float]], seed: int) -> None:
        """Makes a cut without audio for each example."""
        lhotse, _ = peer("lhotse", "lhotse")
        rate = 1000  # samples a second: durations have three decimals
        self._seed = seed
        self._cuts = [
            lhotse.MonoCut(
                id=str(index), start=0.0, duration=input, channel=0,
                recording=lhotse.Recording(
                    id=str(index), sources=[], sampling_rate=rate, num_samples=round(input * rate), duration=input
                ),
            )
            for index, (input, _) in enumerate(lengths)
        ]  # fmt: skip

    def by_duration(self, buckets: int, limit: BatchDuration) -> list[list[int]]:
        """Returns batches of a total duration, in buckets that it estimates on all examples."""
        options = {"max_duration": limit.most, "quadratic_duration": limit.quadratic}
        return self._batches(num_buckets=buckets, num_cuts_for_bins_estimate=len(self._cuts), **options)

    def by_sizes(self, buckets: Buckets, sizes: dict[int, int]) -> list[list[int]]:
        """Returns batches of the given sizes in the given one-dimensional buckets."""
        module, _ = peer("lhotse.dataset.sampling.dynamic_bucketing", "lhotse")
        edges = [edge.input for edge in buckets]
        above = [*edges[:-1], edges[-1] + 1e-3]  # its upper edges are exclusive
        constraint = module.FixedBucketBatchSizeConstraint(
            max_seq_len_buckets=above, batch_sizes=[sizes[place] for place in range(len(edges))]
        )
        return self._batches(duration_bins=above[:-1], constraint=constraint)

    def _batches(self, **options: Any) -> list[list[int]]:
        module, _ = peer("lhotse.dataset.sampling.dynamic_bucketing", "lhotse")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it would rather stream from a file
            sampler = module.DynamicBucketingSampler(
                self._cuts, shuffle=True, seed=self._seed, world_size=1, rank=0, **options
            )
            return [[int(cut.id) for cut in batch] for batch in sampler]
