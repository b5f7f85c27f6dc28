"""A sampler that draws batches from buckets while it reads a stream, the same bucket on every rank (Algorithm E)."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from outlay.batching.buckets import Buckets
from outlay.errors import UsageError

BUFFER = 20_000


class BatchLimit(Protocol):
    """Says when a batch is full."""

    def is_full(self, bucket: int, count: int, longest: float) -> bool:
        """Tells whether a batch of `count` examples of a bucket, the longest of this input length, takes no more."""
        ...


@dataclass(frozen=True)
class FixedSizes:
    """A batch size for each bucket, as `OomSearch.profile` finds them."""

    sizes: Mapping[int, int]
    """bucket -> examples of a batch."""

    def is_full(self, bucket: int, count: int, longest: float) -> bool:
        """Tells whether the bucket's batch size is reached."""
        return count >= self.sizes[bucket]


@dataclass(frozen=True)
class BatchDuration:
    """A bound on the input length of a batch, padding included: the recipe that two-dimensional buckets replace."""

    most: float = 360.0
    """Input length of a batch, in seconds in the released recipe."""
    quadratic: float | None = None
    """q: an input of length d counts as d + d^2 / q; 15 in the original Canary recipe."""

    def is_full(self, bucket: int, count: int, longest: float) -> bool:
        """Tells whether one more example as long as the longest would exceed the bound."""
        length = longest if self.quadratic is None else longest + longest**2 / self.quadratic
        return count > 0 and (count + 1) * length > self.most


class _Waiting(NamedTuple):
    number: int
    input: float


@dataclass
class DynamicBucketSampler:
    """Lists of indices, each the batch of one training step; an iterable, as `torch.utils.data.DataLoader` takes it.

    Every step picks a bucket at random and draws examples of it without replacement. Where the bucket has no full
    batch, its neighbours are asked, outward; where none has, a batch that is not full is drawn. All ranks go through
    the same steps and each takes its own batch, so that they read the same bucket and end together.
    """

    lengths: Iterable[Any]
    """The examples' lengths, (input, output) or the input length alone; iterated anew for each epoch."""
    buckets: Buckets
    """The buckets; an example that fits none is left out."""
    sizes: Mapping[int, int] | BatchLimit
    """bucket -> examples of a batch, or another limit."""
    buffer: int = BUFFER
    """Examples that are held at a time, from which batches are drawn."""
    seed: int = 0
    """Seed of all draws."""
    rank: int = 0
    """Number of this process among those that train together."""
    world: int = 1
    """Processes that train together."""
    drop_last: bool = False
    """Leave out examples that fill no batch at the end."""
    concurrent: bool = False
    """Read the stream in a thread of its own, and begin as soon as a bucket is ready; the draws depend on its pace."""
    epoch: int = 0
    """Number of the epoch, on which the draws depend; `set_epoch` changes it."""
    discarded: list[int] = field(default_factory=list, init=False)
    """Indices that fitted no bucket, of the latest epoch."""
    repeated: int = field(default=0, init=False)
    """Examples of the latest epoch that a second rank was given, where fewer than ranks were left in a bucket."""

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            UsageError: A bucket has no batch size, or an option is out of its range.
        """
        if isinstance(self.sizes, Mapping):
            lacking = [place for place in range(len(self.buckets)) if self.sizes.get(place, 0) < 1]
            if lacking:
                raise UsageError(f"bucket {lacking[0]} has no batch size of 1 or more; profile the buckets first")
        elif self.world > 1 and not isinstance(self.sizes, FixedSizes):
            raise UsageError("several ranks need a batch size for each bucket")
        if self.buffer < 1 or self.world < 1 or not 0 <= self.rank < self.world:
            raise UsageError("buffer and world must be 1 or more, and rank from 0 to world - 1")
        if self.concurrent and self.world > 1:
            raise UsageError("concurrent reading makes draws that ranks can't agree on; leave it out for several ranks")

    def set_epoch(self, epoch: int) -> None:
        """Sets the number of the next epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        for _, batches in self.steps():
            yield batches[self.rank]

    def steps(self) -> Iterator[tuple[int, list[list[int]]]]:
        """Yields the steps of an epoch: the bucket, and the batch of each rank."""
        limit = FixedSizes(self.sizes) if isinstance(self.sizes, Mapping) else self.sizes
        picks, draws = (random.Random(f"{self.seed}/{self.epoch}/{stream}") for stream in ("buckets", "examples"))
        queues = _Queues(self, limit)
        self.discarded, self.repeated = queues.discarded, 0
        try:
            queues.fill()
            while True:
                with queues.changed:
                    bucket = self._choose(queues, picks.randrange(len(self.buckets)))
                    if bucket is None:
                        break
                    batches = [queues.draw(bucket, draws) for _ in range(self.world)]
                yield bucket, self._shared_out(batches)
                queues.fill()
        finally:
            queues.close()

    def _choose(self, queues: _Queues, first: int) -> int | None:
        """Returns the bucket nearest to `first` that has a full batch for every rank, else that has anything."""
        order = sorted(range(len(self.buckets)), key=lambda place: (abs(place - first), place))
        full = next((place for place in order if queues.is_ready(place)), None)
        if full is not None or self.drop_last:
            return full
        return next((place for place in order if queues.waiting[place]), None)

    def _shared_out(self, batches: list[list[int]]) -> list[list[int]]:
        """Returns batches for all ranks: the last examples of a bucket are dealt out evenly, or repeated if too few."""
        if all(batches):
            return batches
        left = [index for batch in batches for index in batch]
        self.repeated += max(0, self.world - len(left))
        return [left[rank :: self.world] or [left[rank % len(left)]] for rank in range(self.world)]


class _Queues:
    """The examples that wait in each bucket, read from the sampler's stream at once or by a thread."""

    def __init__(self, sampler: DynamicBucketSampler, limit: BatchLimit) -> None:
        self.waiting: list[list[_Waiting]] = [[] for _ in sampler.buckets]
        self.discarded: list[int] = []
        self.changed = threading.Condition()
        self._sampler, self._limit = sampler, limit
        self._source = enumerate(sampler.lengths)
        self._held, self._ended, self._closed = 0, False, False
        self._error: BaseException | None = None
        self._reader: threading.Thread | None = None
        if sampler.concurrent:
            self._reader = threading.Thread(target=self._read_ahead, name="outlay-batches", daemon=True)
            self._reader.start()

    def fill(self) -> None:
        """Reads until the buffer is full or the stream ends; with a reader, waits until it has a full batch."""
        if self._reader is None:
            while not self._ended and self._has_room():
                self._read_one()
            return
        with self.changed:
            self.changed.wait_for(lambda: self._ended or not self._has_room() or self._any_ready())
            if self._error is not None:
                raise self._error

    def is_ready(self, bucket: int) -> bool:
        """Tells whether a bucket has a full batch for every rank."""
        full, count, longest = 0, 0, 0.0
        for example in self.waiting[bucket]:
            count, longest = count + 1, max(longest, example.input)
            if self._limit.is_full(bucket, count, longest):
                full, count, longest = full + 1, 0, 0.0
                if full == self._sampler.world:
                    return True
        return False

    def _any_ready(self) -> bool:
        return any(map(self.is_ready, range(len(self.waiting))))

    def _has_room(self) -> bool:
        """Whether the stream is read on: below the buffer, and above it as long as only full batches are drawn."""
        return self._held < self._sampler.buffer or (self._sampler.drop_last and not self._any_ready())

    def draw(self, bucket: int, draws: random.Random) -> list[int]:
        """Takes the examples of a batch from a bucket, at random; none where it is empty."""
        queue, batch, longest = self.waiting[bucket], list[int](), 0.0
        while queue and not self._limit.is_full(bucket, len(batch), longest):
            place = draws.randrange(len(queue))
            queue[place], queue[-1] = queue[-1], queue[place]
            example = queue.pop()
            batch.append(example.number)
            longest = max(longest, example.input)
        self._held -= len(batch)
        self.changed.notify_all()
        return batch

    def close(self) -> None:
        """Ends the reader."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        if self._reader is not None:
            self._reader.join()

    def _read_one(self) -> None:
        """Reads the next example into its bucket."""
        found = next(self._source, None)
        if found is None:
            self._ended = True
            return
        index, lengths = found
        try:
            input, output = lengths
        except TypeError:  # one length, a number
            input, output = lengths, 0.0
        try:
            bucket = self._sampler.buckets.locate(input, output)
        except UsageError as error:
            raise UsageError(f"example {index}: {error}") from error
        with self.changed:
            if bucket is None:
                self.discarded.append(index)
            else:
                self.waiting[bucket].append(_Waiting(index, input))
                self._held += 1
            self.changed.notify_all()

    def _read_ahead(self) -> None:
        """Reads as long as there is room and the sampler is iterated."""
        try:
            while not (self._ended or self._closed):
                with self.changed:
                    self.changed.wait_for(lambda: self._closed or self._has_room())
                if not self._closed:
                    self._read_one()
        except BaseException as error:  # raised again where the batches are drawn
            self._error = error
        with self.changed:
            self._ended = True
            self.changed.notify_all()
