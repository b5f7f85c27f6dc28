"""The cache of keys and values: one slot for each token of a tree, in spans that attention reads without gathering.

Slots are handed out in `Region`s, contiguous spans that one branch of a tree fills. Nothing is ever moved within the
cache: a slot that is freed inside a region is taken again by the region's next token, in whatever order, because
attention does not care in which order it reads its keys. Only growing the cache copies it, and doubles it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from heapq import heappop, heappush

import numpy as np
import torch
from torch import Tensor

from outlay.errors import FailureError
from outlay.models.config import DecoderConfig


class Region:
    """A span of slots [start, start + size) that one tree fills, its `owner`; `top` is where its untouched part
    begins.
    """

    __slots__ = ("cache", "holes", "in_use", "owner", "size", "start", "top")

    def __init__(self, cache: Cache, start: int, size: int) -> None:
        self.cache, self.start, self.size = cache, start, size
        self.top = 0
        self.in_use = 0
        self.holes: list[int] = []
        self.owner: object | None = None

    @property
    def room(self) -> int:
        """How many more slots this region can give."""
        return self.size - self.in_use

    def take(self, position: int) -> int:
        """Returns a slot for the token at `position`: the lowest hole, so that a chain closes up, or the next
        untouched.
        """
        self.in_use += 1
        self.cache.in_use += 1
        if self.holes:
            slot = heappop(self.holes)
        else:
            slot = self.start + self.top
            self.top += 1
        self.cache.positions[slot] = position
        return slot

    def give(self, slot: int) -> None:
        """Takes a slot back; the region itself goes back to the cache with its last one."""
        self.in_use -= 1
        self.cache.in_use -= 1
        if self.in_use == 0:
            self.cache.give(self)
        elif slot == self.start + self.top - 1:
            self.top -= 1
        else:
            heappush(self.holes, slot)

    def extend(self, size: int) -> bool:
        """Grows in place by `size` slots if those behind it are free; tells whether it did."""
        if not self.cache.claim(self.start + self.size, size):
            return False
        self.size += size
        return True

    def trim(self) -> None:
        """Gives the untouched slots back and lets another tree continue the region."""
        self.owner = None
        if self.size > self.top:
            self.cache.release(self.start + self.top, self.size - self.top)
            self.size = self.top


class Cache:
    """Keys and values of one model: `keys[layer]` and `values[layer]` are [num_kv_heads, capacity, head_dim].

    `capacity`, `in_use` and `limit` count slots (tokens). The cache starts small and doubles as it is needed, up to
    `limit`; past that, and when the memory can't be had, `region` raises `FailureError`, which says how much was asked
    for. Before it fails it calls `reclaim`, which may free slots that are kept for later and tells whether it did.
    """

    def __init__(
        self, config: DecoderConfig, dtype: torch.dtype, device: torch.device, *, limit: int, capacity: int = 1024
    ) -> None:
        self.config, self.dtype, self.device, self.limit = config, dtype, device, limit
        self.in_use = 0
        self.capacity = 0
        self.reclaim: Callable[[], bool] | None = None
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.positions = np.empty(0, dtype=np.int64)  # of the token in each slot, where one is
        self._free: list[tuple[int, int]] = []  # (start, size), sorted by start, never adjacent
        self._grow(min(capacity, limit))

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of keys and values that one token holds, over all layers."""
        config = self.config
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * self.dtype.itemsize

    def bytes(self) -> int:
        """Returns the bytes that the tokens now in the cache hold."""
        return self.in_use * self.bytes_per_slot

    def region(self, size: int) -> Region:
        """Returns a new region of `size` slots, or of as many as are left. Raises `FailureError` when none are."""
        index = self._fit(size)
        while index is None and self._growable() < size and self.reclaim is not None and self.reclaim():
            index = self._fit(size)
        if index is None:
            size = min(size, max(self._growable(), *(length for _, length in self._free), 0))
            if size == 0:
                raise FailureError(
                    f"the cache is full: {self.in_use} of at most {self.limit} tokens are held and more were asked "
                    "for; run fewer requests at a time or load the model with a larger cache_tokens"
                )
            if self._fit(size) is None:
                self._grow(size)
            index = self._fit(size)
            assert index is not None
        start, length = self._free[index]
        if length == size:
            del self._free[index]
        else:
            self._free[index] = (start + size, length - size)
        return Region(self, start, size)

    def claim(self, start: int, size: int) -> bool:
        """Takes the slots [start, start + size) if they are free, or can be had by growing; tells whether it did."""
        tail = self._tail()
        if tail < size <= self._growable() and start + tail == self.capacity:
            self._grow(size)
        index = bisect_left(self._free, (start, 0))
        if index == len(self._free) or self._free[index][0] != start or self._free[index][1] < size:
            return False
        length = self._free[index][1]
        if length == size:
            del self._free[index]
        else:
            self._free[index] = (start + size, length - size)
        return True

    def give(self, region: Region) -> None:
        """Takes an empty region back."""
        self.release(region.start, region.size)
        region.size = 0
        region.holes.clear()
        region.top = 0

    def free_slots(self) -> int:
        """Returns how many slots are in no region, counting those that the cache may still grow by."""
        return sum(size for _, size in self._free) + self.limit - self.capacity

    def _tail(self) -> int:
        """Returns how many slots are free at the cache's end."""
        return self._free[-1][1] if self._free and sum(self._free[-1]) == self.capacity else 0

    def _growable(self) -> int:
        """Returns how many slots the cache's end could have, if the cache grew to its limit."""
        return self._tail() + self.limit - self.capacity

    def _fit(self, size: int) -> int | None:
        best = [(length, index) for index, (_, length) in enumerate(self._free) if length >= size]
        return min(best)[1] if best else None

    def release(self, start: int, size: int) -> None:
        """Takes the slots [start, start + size) back and joins them with the free ones beside them."""
        index = bisect_left(self._free, (start, 0))
        if index < len(self._free) and self._free[index][0] == start + size:
            size += self._free.pop(index)[1]
        if index > 0 and sum(self._free[index - 1]) == start:
            index -= 1
            start, before = self._free.pop(index)
            size += before
        insort(self._free, (start, size))

    def _grow(self, size: int) -> None:
        needed = self.capacity + size - self._tail()
        capacity = min(self.limit, max(needed, 2 * self.capacity))
        try:
            for layer in range(self.config.num_layers):
                self._resize(layer, capacity)
        except (RuntimeError, MemoryError) as error:
            gigabytes = capacity * self.bytes_per_slot / 1e9
            raise FailureError(
                f"no memory for a cache of {capacity} tokens ({gigabytes:.1f} GB): load the model with a smaller "
                "cache_tokens"
            ) from error
        self.positions = np.concatenate([self.positions, np.empty(capacity - self.capacity, dtype=np.int64)])
        self.release(self.capacity, capacity - self.capacity)
        self.capacity = capacity

    def _resize(self, layer: int, capacity: int) -> None:
        shape = (self.config.num_kv_heads, capacity, self.config.head_dim)
        for store in (self.keys, self.values):
            # Zeros, because a masked slot is multiplied by 0, and what was in memory may be infinite or NaN.
            grown = torch.zeros(shape, dtype=self.dtype, device=self.device)
            if layer == len(store):
                store.append(grown)
            else:
                grown[:, : self.capacity] = store[layer][:, : self.capacity]
                store[layer] = grown
