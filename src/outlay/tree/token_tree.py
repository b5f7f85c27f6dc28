"""The token tree: a node is one token after one prefix; its keys and values are computed once and live in one slot.

A `Tree` belongs to one run. Its *trunk* is the path to `tip`, what is decided; the nodes below the tip are *loose*,
what is being tried. `extend` grows loose nodes, `keep` decides, `free` gives up, `fork` starts another tree on the
same path. None of them copies keys or values: trees share nodes, and a node is held as long as a tree, a child or a
pin holds it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from copy import copy
from typing import Protocol

from torch import Tensor

from outlay.errors import FailureError
from outlay.tree.cache import Cache, Region

NO_TOKEN = -1  # of a node that is a vector alone
STEP = 64  # slots by which a region grows at least
STRAIGHT = 32  # a span whose tokens lie side by side stays so from this length on, and the next one takes what follows


class Node:
    """One token after one prefix. `position` counts tokens from the start of the text; `computed` says whether the
    keys and values are in `slot`; `origin` names what proposed the token, and is empty for the model's own choice.
    `vector` [hidden_size] is what the model reads with the token, or in its place: see `Decoder.inputs`. A `token` of
    `NO_TOKEN` is none: the node is a vector alone."""

    __slots__ = (
        "children", "computed", "origin", "parent", "pins", "position", "region", "slot", "token", "tree", "vector",
    )  # fmt: skip

    def __init__(self, tree: Tree, parent: Node | None, token: int, region: Region, origin: str = "") -> None:
        self.tree, self.parent, self.token, self.region, self.origin = tree, parent, token, region, origin
        self.position: int = parent.position + 1 if parent else 0
        self.slot = region.take(self.position)
        self.children = 0
        self.pins = 1  # the tree's own
        self.computed = False
        self.vector: Tensor | None = None
        if parent is not None:
            parent.children += 1

    def path(self, after: Node | None = None) -> list[Node]:
        """Returns the nodes from the one behind `after` (or the root) down to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not after:
            assert node is not None, "`after` is not above this node"
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    def unpin(self) -> None:
        """Takes a pin away, and frees this node and those above that nothing holds any more."""
        self.pins -= 1
        node: Node | None = self
        while node is not None and node.children == 0 and node.pins == 0:
            node.region.give(node.slot)
            node = node.parent
            if node is not None:
                node.children -= 1


class Watcher(Protocol):
    """Told what happens to a tree's nodes; see `Tree.watch`."""

    def grew(self, nodes: Sequence[Node]) -> None:
        """These nodes are new; a prompt's come decided."""

    def kept(self, nodes: Sequence[Node]) -> None:
        """These nodes are decided."""

    def freed(self, nodes: Sequence[Node]) -> None:
        """These nodes are given up."""


class Span:
    """`count` tokens of a trunk, from position `base` on: side by side from slot `start`, or scattered over `slots`."""

    __slots__ = ("base", "count", "region", "slots", "start")

    def __init__(self, node: Node) -> None:
        self.region, self.base, self.start = node.region, node.position, node.slot
        self.count = 1
        self.slots: array[int] | None = None

    def add(self, node: Node) -> bool:
        """Takes the trunk's next token in, unless a span of its own serves it better; tells whether it did."""
        if node.region is not self.region:
            return False
        if self.slots is None and node.slot != self.start + self.count:
            if self.count >= STRAIGHT:
                return False
            self.slots = array("q", range(self.start, self.start + self.count))
        if self.slots is not None:
            self.slots.append(node.slot)
        self.count += 1
        return True

    def holds(self, node: Node) -> bool:
        """Tells whether the node is one of the span's."""
        index = node.position - self.base
        if not 0 <= index < self.count:
            return False
        return node.slot == (self.start + index if self.slots is None else self.slots[index])

    def copy(self) -> Span:
        """Returns a span that can grow apart from this one."""
        twin = copy(self)
        twin.slots = copy(self.slots)
        return twin


class Tree:
    """One run's tokens. `tip` is the last decided node, None before the first."""

    def __init__(self, cache: Cache, *, after: Node | None = None, reserve: int = STEP) -> None:
        """Starts a tree at the node `after` of another tree, sharing its path. `reserve` is how many tokens the caller
        expects to add; they get one contiguous span where there is room."""
        self.cache = cache
        self.tip = after
        self.spans: list[Span] = []
        self.loose: dict[Node, None] = {}
        self.watch: Watcher | None = None
        self._reserve = reserve
        self._regions: list[Region] = []
        if after is not None:
            after.pins += 1
            for node in after.path():
                self._add_to_trunk(node)

    def extend(
        self,
        parents: Sequence[Node | int | None],
        tokens: Sequence[int],
        origin: str | Sequence[str] = "",
        vectors: Sequence[Tensor] | None = None,
    ) -> list[Node]:
        """Grows one loose node for each parent and token. A parent is the tip, or loose, or the index of an earlier one
        of those that are grown here, -1 for the tip. Siblings may share a token. `origin` says what proposed them, such
        as "lookup" or "draft", each of them or all; results, traces and the terminal show it. `vectors` [hidden_size]
        are the nodes' own.

        Raises `FailureError` when the cache is full; the tree is then as it was.
        """
        grown: list[Node] = []
        try:
            for place, (parent, token) in enumerate(zip(parents, tokens, strict=True)):
                if isinstance(parent, int):
                    parent = self.tip if parent < 0 else grown[parent]
                else:
                    assert parent is self.tip or parent in self.loose, "a tree grows from its tip and its loose nodes"
                by = origin if isinstance(origin, str) else origin[place]
                node = Node(self, parent, token, self._room_below(parent), by)
                if vectors is not None:
                    node.vector = vectors[place]
                grown.append(node)
                self.loose[node] = None
        except FailureError:
            self._drop(grown)
            raise
        if self.watch is not None and grown:
            self.watch.grew(grown)
        return grown

    def append(self, tokens: Sequence[int]) -> None:
        """Decides `tokens`, one after the other behind the tip. Nothing may be loose."""
        assert not self.loose, "a trunk grows only when nothing is being tried"
        region: Region | None = None
        for token in tokens:
            if region is None or not region.room:
                region = self._room_below(self.tip)
            above, self.tip = self.tip, Node(self, self.tip, token, region)
            self._add_to_trunk(self.tip)
            if above is not None:
                above.unpin()
        if self.watch is not None and self.tip is not None and tokens:
            grown = self.tip.path()[-len(tokens) :]
            self.watch.grew(grown)
            self.watch.kept(grown)

    def keep(self, node: Node) -> None:
        """Decides the path to `node`, which becomes the tip, and frees every other loose node."""
        self.prune([node])
        self._decide(node)

    def prune(self, nodes: Sequence[Node]) -> None:
        """Frees every loose node that is not on the path to one of `nodes`. Decides nothing."""
        kept: set[Node] = set()
        for node in nodes:
            walk: Node | None = node
            while walk is not None and walk in self.loose and walk not in kept:
                kept.add(walk)
                walk = walk.parent
        self._drop([loose for loose in self.loose if loose not in kept])

    def free(self, node: Node) -> None:
        """Frees a loose node and all below it; the node above stays."""
        below = {node}
        for loose in self.loose:  # parents come before their children
            if loose.parent in below:
                below.add(loose)
        self._drop([loose for loose in self.loose if loose in below])

    def sees(self, node: Node) -> bool:
        """Tells whether the node is loose here or on the trunk."""
        return node in self.loose or any(span.holds(node) for span in self.spans)

    def fork(self, node: Node | None = None) -> Tree:
        """Returns a tree of its own on the path to `node` (the tip by default), sharing every key and value on it."""
        at = node or self.tip
        assert at is not None, "an empty tree has nothing to fork"
        twin = Tree(self.cache, reserve=self._reserve)
        twin.watch = self.watch
        twin.spans = [span.copy() for span in self.spans]
        for loose in at.path(self.tip):
            twin._add_to_trunk(loose)
        twin.tip = at
        at.pins += 1
        return twin

    def release(self) -> None:
        """Gives everything back that nobody else holds."""
        self._drop(list(self.loose))
        tip, self.tip = self.tip, None
        self.spans = []
        if tip is not None:
            tip.unpin()
        for region in self._regions:
            if region.owner is self:
                region.trim()
        self._regions = []

    def _decide(self, node: Node) -> None:
        if node is self.tip:
            return
        path, before = node.path(self.tip), self.tip
        self.tip = node  # stays pinned, as it was while loose
        for decided in path:
            del self.loose[decided]
            self._add_to_trunk(decided)
        for above in [before, *path[:-1]]:
            if above is not None:
                above.unpin()
        if self.watch is not None:
            self.watch.kept(path)

    def _drop(self, nodes: Sequence[Node]) -> None:
        if self.watch is not None and nodes:
            self.watch.freed(nodes)
        for node in reversed(nodes):  # children were grown after their parents
            del self.loose[node]
            node.unpin()

    def _add_to_trunk(self, node: Node) -> None:
        if not self.spans or not self.spans[-1].add(node):
            self.spans.append(Span(node))

    def _room_below(self, parent: Node | None) -> Region:
        for region in (parent.region if parent else None, self._regions[-1] if self._regions else None):
            if region is None or not self._owns(region):
                continue
            if region.room or (region.size and (region.extend(max(STEP, region.size // 2)) or region.extend(1))):
                return region
        region = self.cache.region(min(self._reserve, self.cache.limit))
        region.owner = self
        self._regions.append(region)
        self._reserve = max(STEP, self._reserve // 2)
        return region

    def _owns(self, region: Region) -> bool:
        """A region is filled by one tree at a time; one whose tree is gone may be continued from its end."""
        tip = self.tip
        ends_here = tip is not None and tip.region is region and tip.slot == region.start + region.top - 1
        if region.owner is None and ends_here:
            region.owner = self
            self._regions.append(region)
        return region.owner is self
