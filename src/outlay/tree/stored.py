"""What a cache policy holds of a tree's trunk: segments with a length of their own in each layer.

A plain token has a slot of the KV cache, in every layer. A stored token has none: its segment holds its key and value
in those layers that keep it, in as many bits as the policy says. The position of a token is counted by its node, apart
from how many tokens a layer holds. Forks share segments; the last tree that holds one frees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from outlay.tree.cache import Cache, Region

if TYPE_CHECKING:
    from outlay.tree.token_tree import Node


class _Nowhere(Region):
    """The region of tokens without a slot. No tree fills it, and nothing in it is ever freed."""

    def __init__(self) -> None:
        self.start = self.size = self.top = self.in_use = 0
        self.owner: object | None = self

    def allocate(self, position: int) -> int:
        return -1

    def free(self, slot: int) -> None:
        """There is nothing to free."""


NOWHERE: Region = _Nowhere()


class HeldKeys(NamedTuple):
    """Keys and values of some tokens in one layer."""

    positions: Tensor
    """int64 [length], of the tokens in their text."""
    keys: Tensor
    """[num_kv_heads, length, head_dim]."""
    values: Tensor
    """[num_kv_heads, length, head_dim]."""


class Part(Protocol):
    """Tokens of one layer, held alike."""

    @property
    def length(self) -> int:
        """How many tokens it holds."""

    @property
    def payload(self) -> int:
        """Bytes of keys and values, without what is needed to read them."""

    @property
    def overhead(self) -> int:
        """Bytes of scales and of the tokens' positions."""

    def read(self, dtype: torch.dtype) -> HeldKeys:
        """Returns its keys and values in a float dtype."""


class Segment:
    """Tokens of a trunk that are side by side, as a policy holds them.

    Attributes:
        base: position of the first token.
        nodes: the tokens.
        layers: what each layer holds; None before it is known.
        holders: how many trees hold it.
    """

    def __init__(self, cache: Cache, base: int, nodes: Sequence[Node]) -> None:
        self.base, self.nodes = base, nodes
        self._cache, self._known = cache, frozenset(nodes)
        self.layers: Sequence[Sequence[Part]] | None = None
        self.holders = 1

    @property
    def end(self) -> int:
        """Position behind the last token."""
        return self.base + len(self.nodes)

    def __contains__(self, node: Node) -> bool:
        return node in self._known

    def fill(self, layers: Sequence[Sequence[Part]]) -> None:
        """Says what each layer holds, once."""
        assert self.layers is None, "a segment is filled once"
        self.layers = layers
        self._cache.stored_bytes += self.bytes

    def length(self, layer: int) -> int:
        """Returns how many tokens a layer holds."""
        return sum(part.length for part in self._parts(layer))

    @property
    def payload(self) -> int:
        """Bytes of keys and values over all layers."""
        return sum(part.payload for parts in self.layers or () for part in parts)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors over all layers."""
        return sum(part.payload + part.overhead for parts in self.layers or () for part in parts)

    def read(self, layer: int, dtype: torch.dtype) -> HeldKeys | None:
        """Returns what a layer holds, part by part; None where that is nothing."""
        parts = [part.read(dtype) for part in self._parts(layer) if part.length]
        if len(parts) < 2:
            return parts[0] if parts else None
        positions, keys, values = zip(*parts, strict=True)
        return HeldKeys(torch.cat(positions), torch.cat(keys, 1), torch.cat(values, 1))

    def hold(self) -> None:
        """One more tree holds it."""
        self.holders += 1

    def drop(self) -> None:
        """A tree gives it up; the last one frees it."""
        self.holders -= 1
        if self.holders == 0:
            self._cache.stored_bytes -= self.bytes
            self.layers = None

    def _parts(self, layer: int) -> Sequence[Part]:
        assert self.layers is not None, "a segment is read when it is filled"
        return self.layers[layer]


class Keeper(Protocol):
    """What a policy knows of one tree; `outlay.attend.policy` says what it does."""

    def fork(self) -> Keeper:
        """Returns its like for another tree on the same path."""


class StoredTrunk:
    """The stored beginning of a tree's trunk.

    Attributes:
        segments: in the order of the text; the first is the prompt.
        keeper: the policy's view of this tree; None before the prompt is computed.
        due: what the keeper wants held anew before the next pass, with the last node of it; None where that is nothing.
        lingering: stored tokens whose slots another tree still reads.
    """

    def __init__(
        self, segments: list[Segment], keeper: Keeper | None = None, due: tuple[Any, Node] | None = None
    ) -> None:
        self.segments, self.keeper, self.due = segments, keeper, due
        self.lingering: list[Node] = []

    @property
    def end(self) -> int:
        """Position behind the last stored token."""
        return self.segments[-1].end if self.segments else 0

    @property
    def ready(self) -> bool:
        """Whether every segment is filled."""
        return all(segment.layers is not None for segment in self.segments)

    def holds(self, node: Node) -> bool:
        """Tells whether a node is stored."""
        return any(node in segment for segment in self.segments)

    def replace(self, segment: Segment) -> None:
        """Takes a segment in place of those from its first position on."""
        gone = [each for each in self.segments if each.base >= segment.base]
        self.segments = [*self.segments[: len(self.segments) - len(gone)], segment]
        for each in gone:
            each.drop()

    def fork(self) -> StoredTrunk:
        """Returns its like for another tree, which shares every segment."""
        for segment in self.segments:
            segment.hold()
        return StoredTrunk(list(self.segments), None if self.keeper is None else self.keeper.fork(), self.due)

    def release(self) -> None:
        """Gives up every segment."""
        segments, self.segments = self.segments, []
        self.lingering, self.due = [], None
        for segment in segments:
            segment.drop()
