"""The turns of a comparison: every contender in turn on the same items, in an order that changes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

Rows = list[dict[str, Any]]


class Plan(Protocol):
    """How often each item is answered."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Each item is answered once with each."""

    @property
    def repeats(self) -> int:
        """How often each answer is measured."""

    @property
    def batch(self) -> int:
        """Items that are answered together."""


@dataclass(frozen=True)
class Shard:
    """The items of one batch with one seed, once for each contender: what is compared was measured side by side."""

    number: int
    repeat: int
    seed: int
    items: tuple[int, ...]


Pending = tuple[Shard, set[tuple[int, int]]]  # a shard, with the (contender, item) pairs that are done


def shards(plan: Plan, items: int) -> list[Shard]:
    """Returns all shards in the order in which they are run: the whole of a repeat before the next.

    Args:
        plan: says the seeds, the repeats and the size of a batch.
        items: how many items there are.
    """
    batches = [tuple(range(start, min(start + plan.batch, items))) for start in range(0, items, plan.batch)]
    slots = [(repeat, seed, batch) for repeat in range(plan.repeats) for seed in plan.seeds for batch in batches]
    return [Shard(number, *slot) for number, slot in enumerate(slots)]


def turns(contenders: int, shard: int) -> list[int]:
    """Returns the order of the contenders in a shard.

    Over n shards each of n contenders has each place once. From one such round to the next it changes who comes after
    whom.
    """
    order = list(range(contenders))
    random.Random(shard // contenders).shuffle(order)
    shift = shard % contenders
    return order[shift:] + order[:shift]


def turns_left(contenders: int, shard: Shard, done: set[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """Yields each turn of a shard that is not done: the contender, and the items that it has not answered."""
    for index in turns(contenders, shard.number):
        items = [item for item in shard.items if (index, item) not in done]
        if items:
            yield index, items
