"""Memories: what a decoder reads of its encoder, as keys and values of each layer, made once for an input.

A memory lies in slots of a cache of its own. It is read-only, and shared by all trees of all requests with the same
input; the last of them frees it. Nodes below different memories differ even where their tokens are equal, so each
memory has a prefix cache of its own.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from outlay.errors import CacheFull, FailureError
from outlay.models.config import DecoderConfig
from outlay.models.speech import Clip
from outlay.tree.cache import Cache, Region
from outlay.tree.encoded import EncoderOutput
from outlay.tree.plan import KVSpan
from outlay.tree.prefix import PrefixCache

EncoderInput = tuple[int, ...] | Clip
"""What an encoder reads: token ids, or sound."""


class Memory:
    """The keys and values of one input.

    Attributes:
        input: what the encoder reads.
        slots: where its keys and values lie in the cache of memories, in the order of the input.
        computed: whether they lie there already.
        output: what the encoder made of it, for other models with the same encoder.
        readers: how many hold it.
        prefixes: cached prefixes of the texts below this memory; None where nothing is cached.
    """

    def __init__(self, input: EncoderInput, regions: Sequence[Region], prefixes: PrefixCache | None) -> None:
        self.input, self.prefixes = input, prefixes
        self.computed, self.readers = False, 1
        self.output: EncoderOutput | None = None
        self._held: list[tuple[Region, int]] = []
        for region in regions:
            self._held += [(region, region.allocate(len(self._held) + place)) for place in range(region.size)]
        self.slots = array("q", (slot for _, slot in self._held))
        self._contiguous = list(self.slots) == list(range(self.slots[0], self.slots[0] + len(self.slots)))

    def __len__(self) -> int:
        return len(self.slots)

    def span(self, rows: Sequence[int]) -> KVSpan:
        """Returns all of it as what these rows of a pass read."""
        slots = None if self._contiguous else self.slots
        return KVSpan(0, self.slots[0], len(self.slots), tuple(rows), slots)

    def free(self) -> None:
        """Frees its slots, the encoder's output and the prefixes that are cached below it."""
        self.output = None
        if self.prefixes is not None:
            self.prefixes.clear()
        held, self._held = self._held, []
        for region, slot in held:
            region.free(slot)


class Memories:
    """The memories of one model.

    Attributes:
        config: the shape of the decoder as it reads a memory: no windows, and no bias by distance.
        cache: keys and values of all memories.
    """

    def __init__(
        self, config: DecoderConfig, dtype: torch.dtype, device: torch.device, *, limit: int, keep_prefixes: bool
    ) -> None:
        self.config = replace(config, windows=(None,) * config.num_layers, relative=None)
        self.cache = Cache(self.config, dtype, device, limit=limit)
        self._keep_prefixes = keep_prefixes
        self._by_input: dict[EncoderInput, Memory] = {}

    def __iter__(self) -> Iterator[Memory]:
        return iter(self._by_input.values())

    def open(self, input: Sequence[int] | Clip) -> Memory:
        """Returns the memory of an input, for a reader who closes it.

        Raises:
            CacheFull: When there is no room for it at present.
        """
        key = input if isinstance(input, Clip) else tuple(input)
        if (memory := self._by_input.get(key)) is not None:
            memory.readers += 1
            return memory
        regions: list[Region] = []
        try:
            if not self.cache.has_room(len(key)):
                raise CacheFull(f"the cache has no room for an input of {len(key)} more tokens")
            while (missing := len(key) - sum(region.size for region in regions)) > 0:
                regions.append(self.cache.region(missing))
        except FailureError:
            for region in regions:
                self.cache.free(region)
            raise
        memory = Memory(key, regions, PrefixCache() if self._keep_prefixes else None)
        self._by_input[key] = memory
        return memory

    def close(self, memory: Memory) -> None:
        """Gives up a memory; the last reader frees it."""
        memory.readers -= 1
        if memory.readers == 0:
            del self._by_input[memory.input]
            memory.free()

    def evict(self) -> bool:
        """Evicts a cached prefix of a text below a memory; tells whether there was one."""
        return any(memory.prefixes.evict() for memory in self if memory.prefixes is not None)

    def clear(self) -> None:
        """Forgets all cached prefixes of texts."""
        for memory in self:
            if memory.prefixes is not None:
                memory.prefixes.clear()


class ScratchCache(Cache):
    """Where an encoder's pass writes keys and values, which the next layer overwrites: all layers share one place."""

    def __init__(self, config: DecoderConfig, device: torch.device, *, limit: int) -> None:
        self._depth = config.num_layers
        super().__init__(replace(config, num_layers=1), torch.float32, device, limit=limit, capacity=256)
        self.keep_hidden_states()

    def _grow(self, size: int) -> None:
        del self.layers[1:]
        super()._grow(size)
        self.layers *= self._depth
