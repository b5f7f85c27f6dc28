"""The KV cache: one slot for each token of a tree, in regions that attention reads without gathering.

Slots are handed out in `Region`s, contiguous slots that one branch of a tree fills. Nothing is ever moved within the
cache: a region's next token takes any slot that was freed in it, because attention does not care in which order it
reads its keys. Only growing the cache copies it; it doubles each time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import gcd

import numpy as np
import torch
from torch import Tensor

from outlay.errors import CacheFull, FailureError
from outlay.kernels import KeyValues
from outlay.models.config import DecoderConfig

KV_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
GROUP = 32  # dimensions of a head that share a scale in an int8 cache, if it divides the head


class Region:
    """Slots [start, start + size) that one tree, the `owner`, fills. Slots from start + `top` on were never used."""

    __slots__ = ("cache", "holes", "in_use", "owner", "size", "start", "top")

    def __init__(self, cache: Cache, start: int, size: int) -> None:
        self.cache, self.start, self.size = cache, start, size
        self.top = 0
        self.in_use = 0
        self.holes: list[int] = []
        self.owner: object | None = None

    @property
    def available(self) -> int:
        """Number of free slots."""
        return self.size - self.in_use

    def allocate(self, position: int) -> int:
        """Returns a slot for the token at `position`: the lowest freed one, so that gaps close, or the next unused."""
        self.in_use += 1
        self.cache.in_use += 1
        if self.holes:
            slot = heappop(self.holes)
        else:
            slot = self.start + self.top
            self.top += 1
        self.cache.positions[slot] = position
        return slot

    def free(self, slot: int) -> None:
        """Frees a slot, and the whole region with its last one."""
        self.in_use -= 1
        self.cache.in_use -= 1
        if self.in_use == 0:
            self.cache.free(self)
        elif slot == self.start + self.top - 1:
            self.top -= 1
        else:
            heappush(self.holes, slot)

    def extend(self, size: int) -> bool:
        """Grows in place by `size` slots if those after it are free; tells whether it did."""
        if not self.cache.claim(self.start + self.size, size):
            return False
        self.size += size
        return True

    def trim(self, owner: object | None = None) -> None:
        """Releases the unused slots. From now on `owner` alone may continue the region, or any tree if it is None."""
        self.owner = owner
        if self.size > self.top:
            self.cache.release(self.start + self.top, self.size - self.top)
            self.size = self.top


class Cache:
    """Keys and values of one model.

    The cache starts small and doubles as needed, up to its limit.

    Attributes:
        layers: keys and values of each layer, [num_kv_heads, capacity, head_dim]; one tensor where they are the same.
        hidden_states: float32 [capacity, hidden_size], what the model's LM head read for the token in each slot; stored
            from `keep_hidden_states` on, for drafts that start from them.
        positions: int64 [capacity], the position of the token in each slot.
        capacity: slots that are allocated.
        in_use: slots that hold a token.
        stored_bytes: what policies hold beside the slots (`outlay.tree.stored`), which counts against the limit.
        reclaim: called when the cache is full; may free slots of cached prefixes, and tells whether it did.
        rescue: called when there is no slot at all, not even one to reclaim; may take some from a run that is at work,
            and tells whether it did.
    """

    def __init__(
        self, config: DecoderConfig, dtype: torch.dtype, device: torch.device, *, limit: int, capacity: int = 1024
    ) -> None:
        """Makes an empty cache.

        Args:
            config: the model's shape.
            dtype: how keys and values are held: a float dtype, or int8 with a float32 scale for each group of a head's
                dimensions.
            device: where they are held.
            limit: slots at most.
            capacity: slots to begin with.
        """
        self.config, self.dtype, self.device, self.limit = config, dtype, device, limit
        self.in_use = self.stored_bytes = 0
        self.capacity = 0
        self.reclaim: Callable[[], bool] | None = None
        self.rescue: Callable[[], bool] | None = None
        self.group = gcd(GROUP, config.head_dim) if dtype == torch.int8 else 0
        self.layers: list[KeyValues] = []
        self.hidden_states: Tensor | None = None
        self.positions = np.empty(0, dtype=np.int64)
        self._free: list[tuple[int, int]] = []  # (start, size), sorted by start, never adjacent
        self._regions: set[Region] = set()
        self._grow(min(capacity, limit))

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of keys and values that one token holds, over all layers."""
        config = self.config
        per_head = config.head_dim * self.dtype.itemsize + (4 * config.head_dim // self.group if self.group else 0)
        return (1 if config.shared_qkv else 2) * config.num_layers * config.num_kv_heads * per_head

    def bytes(self) -> int:
        """Returns the bytes that the tokens now in the cache hold."""
        return self.in_use * self.bytes_per_slot + self.stored_bytes

    def keep_hidden_states(self) -> None:
        """Keeps hidden states from now on; those of tokens that are here already are zeros."""
        if self.hidden_states is None:
            self.hidden_states = torch.zeros((self.capacity, self.config.hidden_size), device=self.device)

    def write(self, layer: int, slots: slice | Tensor, k: Tensor, v: Tensor) -> None:
        """Writes k and v [n, num_kv_heads, head_dim] into n slots, rounded to the cache's dtype."""
        held = self.layers[layer]
        both = ((k, held.keys, held.key_scales), (v, held.values, held.value_scales))
        for x, to, scales in both[:1] if self.config.shared_qkv else both:
            x = x.transpose(0, 1)
            if scales is not None:
                x, scales[:, slots] = quantize(x, self.group)
            to[:, slots] = x.to(to.dtype)

    def read(self, layer: int, slots: slice | Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the keys and the values in n slots, [num_kv_heads, n, head_dim] of `dtype`."""
        held = self.layers[layer]
        keys, values = held.keys[:, slots], held.values[:, slots]
        if held.key_scales is not None and held.value_scales is not None:
            keys, values = dequantize(keys, held.key_scales[:, slots]), dequantize(values, held.value_scales[:, slots])
        return keys.to(dtype), values.to(dtype)

    def copy(self, source: Sequence[int], to: Sequence[int]) -> None:
        """Copies keys, values and hidden states from n slots to n others."""
        from_slots, to_slots = (torch.tensor(slots, device=self.device) for slots in (source, to))
        for layer in range(len(self.layers)):
            self.copy_layer(layer, source, to)
        if self.hidden_states is not None:
            self.hidden_states[to_slots] = self.hidden_states[from_slots]

    def copy_layer(self, layer: int, source: Sequence[int], to: Sequence[int]) -> None:
        """Copies the keys and values of one layer from n slots to n others, which may be some of the same."""
        from_slots, to_slots = (torch.tensor(slots, device=self.device) for slots in (source, to))
        for part in self.layers[layer].parts:
            part[:, to_slots] = part[:, from_slots]

    def region(self, size: int) -> Region:
        """Returns a new region of `size` slots, or of as many as are left.

        Raises:
            CacheFull: if no slot is left.
            FailureError: if memory for more can't be allocated.
        """
        index = self._fit(size)
        while index is None and self._growable() < size and self.reclaim is not None and self.reclaim():
            index = self._fit(size)
        if index is None:
            longest = self._longest() or self._trim_regions()
            while not longest and self.rescue is not None and self.rescue():
                longest = self._longest() or self._trim_regions()
            size = min(size, longest)
            if size == 0:
                raise CacheFull(
                    f"the cache is full: {self.in_use} of at most {self.limit} tokens are held and more were asked "
                    "for; run fewer requests at a time or load the model with a larger cache_tokens"
                )
            if self._fit(size) is None:
                self._grow(size)
            index = self._fit(size)
            assert index is not None

        region = Region(self, self._take(index, size), size)
        self._regions.add(region)
        return region

    def claim(self, start: int, size: int) -> bool:
        """Takes the slots [start, start + size) if they are free, or can be had by growing; tells whether it did."""
        tail = self._tail()
        if tail < size <= self._growable() and start + tail == self.capacity:
            self._grow(size)
        index = bisect_left(self._free, (start, 0))
        if index == len(self._free) or self._free[index][0] != start or self._free[index][1] < size:
            return False
        self._take(index, size)
        return True

    def free(self, region: Region) -> None:
        """Frees an empty region."""
        self.release(region.start, region.size)
        self._regions.discard(region)
        region.size = 0
        region.holes.clear()
        region.top = 0

    def release(self, start: int, size: int) -> None:
        """Frees the slots [start, start + size) and joins them with the free ones beside them."""
        index = bisect_left(self._free, (start, 0))
        if index < len(self._free) and self._free[index][0] == start + size:
            size += self._free.pop(index)[1]
        if index > 0 and sum(self._free[index - 1]) == start:
            index -= 1
            start, before = self._free.pop(index)
            size += before
        insort(self._free, (start, size))

    def has_room(self, size: int) -> bool:
        """Tells whether `size` more tokens can be held, freeing slots of cached prefixes if need be."""
        stored = -(-self.stored_bytes // self.bytes_per_slot) if self.stored_bytes else 0
        while self.limit - self.in_use - stored < size:
            if self.reclaim is None or not self.reclaim():
                return False
        return True

    def free_slots(self) -> int:
        """Returns how many slots are in no region, counting those that the cache may still grow by."""
        return sum(size for _, size in self._free) + self.limit - self.capacity

    def _take(self, index: int, size: int) -> int:
        """Takes `size` slots from the beginning of a free stretch; returns the first."""
        start, length = self._free[index]
        if length == size:
            del self._free[index]
        else:
            self._free[index] = (start + size, length - size)
        return start

    def _longest(self) -> int:
        """Returns how many slots a region could have at most."""
        return max(self._growable(), *(length for _, length in self._free), 0)

    def _trim_regions(self) -> int:
        """Releases the unused slots of all regions, which their trees may never need, and returns `_longest`."""
        for region in sorted(self._regions, key=lambda region: region.start):
            region.trim(region.owner)
        return self._longest()

    def _tail(self) -> int:
        """Returns how many slots are free at the cache's end."""
        return self._free[-1][1] if self._free and sum(self._free[-1]) == self.capacity else 0

    def _growable(self) -> int:
        """Returns how many slots the cache's end could have, if the cache grew to its limit."""
        return self._tail() + self.limit - self.capacity

    def _fit(self, size: int) -> int | None:
        """Returns the index of the shortest free stretch of at least `size` slots, or None."""
        best = [(length, index) for index, (_, length) in enumerate(self._free) if length >= size]
        return min(best)[1] if best else None

    def _grow(self, size: int) -> None:
        needed = self.capacity + size - self._tail()
        capacity = min(self.limit, max(needed, 2 * self.capacity))
        try:
            for layer in range(self.config.num_layers):
                grown = self._empty(capacity)
                if self.capacity:
                    _copy(self.layers[layer], grown, self.capacity)
                    self.layers[layer] = grown
                else:
                    self.layers.append(grown)
            if self.hidden_states is not None:
                grown_states = self.hidden_states.new_zeros((capacity, self.config.hidden_size))
                grown_states[: self.capacity] = self.hidden_states
                self.hidden_states = grown_states
        except (RuntimeError, MemoryError) as error:
            gigabytes = capacity * self.bytes_per_slot / 1e9
            raise FailureError(
                f"no memory for a cache of {capacity} tokens ({gigabytes:.1f} GB): load the model with a smaller "
                "cache_tokens"
            ) from error
        self.positions = np.concatenate([self.positions, np.empty(capacity - self.capacity, dtype=np.int64)])
        self.release(self.capacity, capacity - self.capacity)
        self.capacity = capacity

    def _empty(self, capacity: int) -> KeyValues:
        """Returns zeros: a masked slot is multiplied by 0, which uninitialized infinities would turn into NaN."""
        config = self.config

        def zeros(width: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros((config.num_kv_heads, capacity, width), dtype=dtype, device=self.device)

        keys = zeros(config.head_dim, self.dtype)
        scales = zeros(config.head_dim // self.group, torch.float32) if self.group else None
        if config.shared_qkv:
            return KeyValues(keys, keys, scales, scales)
        return KeyValues(keys, torch.zeros_like(keys), scales, None if scales is None else torch.zeros_like(scales))


def _copy(source: KeyValues, target: KeyValues, count: int) -> None:
    for part, wider in zip(source.parts, target.parts, strict=True):
        wider[:, :count] = part[:, :count]


def quantize(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Rounds to int8, exactly as the native kernels do.

    Args:
        x: [..., dim].
        group: how many dimensions share a scale.

    Returns:
        Integers from -127 to 127 as float32 [..., dim], and scales float32 [..., dim / group].
    """
    groups = x.float().unflatten(-1, (-1, group))
    largest = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(
        largest > 1e-30, 127 / largest, 0.0
    )  # a smaller group becomes zero; its reciprocal would overflow
    return (groups * inverse).round().flatten(-2), (largest / 127).squeeze(-1)


def dequantize(q: Tensor, scales: Tensor) -> Tensor:
    """Returns the values float32 [..., dim] of integers q [..., dim] and scales float32 [..., groups]."""
    return (q.float().unflatten(-1, (scales.shape[-1], -1)) * scales[..., None]).flatten(-2)
