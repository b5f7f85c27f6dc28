"""The token tree: a node is one token after one prefix; its key and value are computed once and live in one slot.

A `Tree` belongs to one run. Its *trunk* is the path of committed nodes to `tip`; the nodes below the tip are
*tentative*. `extend` grows tentative nodes, `keep` commits a path of them, `free` drops some, `fork` starts another
tree on the same path. None of these copies keys or values: trees share nodes, and a node lives as long as a tree, a
child or a pin holds it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from copy import copy
from typing import Protocol

from torch import Tensor

from outlay.errors import FailureError
from outlay.tree.cache import Cache, Region

NO_TOKEN = -1  # token of a node that is an input embedding alone
STEP = 64  # slots by which a region grows at least
CONTIGUOUS = 32  # a span of contiguous slots stays contiguous from this length on; a new span takes what follows


class Node:
    """One token after one prefix.

    Attributes:
        token: the token's id, or `NO_TOKEN` for an input embedding alone.
        position: how many tokens precede it in its text.
        slot: where its key and value lie in the cache.
        computed: whether they lie there already.
        has_state: whether its hidden state was kept when it was computed.
        origin: what proposed the token; empty for the model's own choice.
        input_embed: input embedding [hidden_size] that the model reads with the token or in its place, if any: see
            `Decoder.inputs`.
    """

    __slots__ = (
        "children", "computed", "has_state", "input_embed", "origin", "parent", "pins", "position", "region", "slot",
        "token", "tree",
    )  # fmt: skip

    def __init__(self, tree: Tree, parent: Node | None, token: int, region: Region, origin: str = "") -> None:
        self.tree, self.parent, self.token, self.region, self.origin = tree, parent, token, region, origin
        self.position: int = parent.position + 1 if parent else 0
        self.slot = region.allocate(self.position)
        self.children = 0
        self.pins = 1  # the tree's own
        self.computed = self.has_state = False
        self.input_embed: Tensor | None = None
        if parent is not None:
            parent.children += 1

    def path(self, after: Node | None = None) -> list[Node]:
        """Returns the nodes below `after` (None: from the root) down to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not after:
            assert node is not None, "`after` is not above this node"
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    @property
    def held(self) -> bool:
        """Whether a tree, a child or a pin holds it."""
        return self.pins > 0 or self.children > 0

    def unpin(self) -> None:
        """Removes a pin, and frees this node and those above that nothing holds any more."""
        self.pins -= 1
        node: Node | None = self
        while node is not None and not node.held:
            node.region.free(node.slot)
            node = node.parent
            if node is not None:
                node.children -= 1


class Watcher(Protocol):
    """Observes the nodes of a tree: see `Tree.watch`."""

    def grew(self, nodes: Sequence[Node]) -> None:
        """Nodes were added; those of a prompt are committed at once."""

    def committed(self, nodes: Sequence[Node]) -> None:
        """Nodes were committed."""

    def freed(self, nodes: Sequence[Node]) -> None:
        """Tentative nodes were dropped."""


class TrunkSpan:
    """`count` tokens of a trunk from position `base` on, in contiguous slots from `start` or scattered over `slots`."""

    __slots__ = ("base", "count", "region", "slots", "start")

    def __init__(self, node: Node) -> None:
        self.region, self.base, self.start = node.region, node.position, node.slot
        self.count = 1
        self.slots: array[int] | None = None

    def add(self, node: Node) -> bool:
        """Adds the trunk's next node, unless it should begin a span of its own; tells whether it did."""
        if node.region is not self.region:
            return False
        if self.slots is None and node.slot != self.start + self.count:
            if self.count >= CONTIGUOUS:
                return False
            self.slots = array("q", range(self.start, self.start + self.count))
        if self.slots is not None:
            self.slots.append(node.slot)
        self.count += 1
        return True

    def holds(self, node: Node) -> bool:
        """Tells whether the node lies in this span."""
        index = node.position - self.base
        if not 0 <= index < self.count:
            return False
        return node.slot == (self.start + index if self.slots is None else self.slots[index])

    def copy(self) -> TrunkSpan:
        """Returns a span that can grow apart from this one."""
        twin = copy(self)
        twin.slots = copy(self.slots)
        return twin


class Tree:
    """The tokens of one run.

    Attributes:
        tip: the last committed node, None before the first.
        spans: the trunk, cut where its slots or regions are not contiguous.
        tentative: the nodes below the tip, parents before their children (a dict, as an ordered set).
        watch: an observer of the tree, if any. Forks inherit it.
    """

    def __init__(self, cache: Cache, *, after: Node | None = None, reserve: int = STEP) -> None:
        """Starts a tree.

        Args:
            cache: where keys and values live.
            after: a node of another tree, whose path this one shares; None for an empty tree.
            reserve: how many tokens the caller expects to add. They get contiguous slots if the cache has them.
        """
        self.cache = cache
        self.tip = after
        self.spans: list[TrunkSpan] = []
        self.tentative: dict[Node, None] = {}
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
        inputs_embeds: Sequence[Tensor] | None = None,
    ) -> list[Node]:
        """Grows a tentative node for each parent and token; siblings may share a token.

        Args:
            parents: for each node the tip, a tentative node, or the index of an earlier node of this call (-1: tip).
            tokens: the token of each node.
            origin: what proposed the tokens, such as "lookup" or "draft": one for each node, or one for all. Results,
                traces and the terminal show it.
            inputs_embeds: an input embedding [hidden_size] for each node.

        Returns:
            The nodes, in the order of `tokens`.

        Raises:
            FailureError: if the cache is full; the tree is then as it was.
        """
        grown: list[Node] = []
        try:
            for place, (parent, token) in enumerate(zip(parents, tokens, strict=True)):
                if isinstance(parent, int):
                    parent = self.tip if parent < 0 else grown[parent]
                else:
                    known = parent is self.tip or parent in self.tentative
                    assert known, "a tree grows from its tip and its tentative nodes"
                by = origin if isinstance(origin, str) else origin[place]
                node = Node(self, parent, token, self._region_below(parent), by)
                if inputs_embeds is not None:
                    node.input_embed = inputs_embeds[place]
                grown.append(node)
                self.tentative[node] = None
        except FailureError:
            self._drop(grown)
            raise

        if self.watch is not None and grown:
            self.watch.grew(grown)
        return grown

    def append(self, tokens: Sequence[int]) -> None:
        """Commits `tokens` one after the other below the tip. No node may be tentative."""
        assert not self.tentative, "a trunk grows only when nothing is tentative"
        region: Region | None = None
        for token in tokens:
            if region is None or not region.available:
                region = self._region_below(self.tip)
            above, self.tip = self.tip, Node(self, self.tip, token, region)
            self._add_to_trunk(self.tip)
            if above is not None:
                above.unpin()

        if self.watch is not None and self.tip is not None and tokens:
            grown = self.tip.path()[-len(tokens) :]
            self.watch.grew(grown)
            self.watch.committed(grown)

    def keep(self, node: Node) -> None:
        """Commits the path to `node`, which becomes the tip, and frees every other tentative node."""
        self.prune([node])
        self._commit(node)

    def prune(self, nodes: Sequence[Node]) -> None:
        """Frees every tentative node that is not on the path to one of `nodes`. Commits nothing."""
        kept: set[Node] = set()
        for node in nodes:
            above: Node | None = node
            while above is not None and above in self.tentative and above not in kept:
                kept.add(above)
                above = above.parent
        self._drop([node for node in self.tentative if node not in kept])

    def free(self, node: Node) -> None:
        """Frees a tentative node and all below it; the node above stays."""
        below = {node}
        for tentative in self.tentative:  # parents come before their children
            if tentative.parent in below:
                below.add(tentative)
        self._drop([tentative for tentative in self.tentative if tentative in below])

    def tentative_path(self, node: Node) -> list[Node]:
        """Returns the tentative nodes from `node` up to the tip; none if it is committed."""
        path = []
        above: Node | None = node
        while above is not None and above in self.tentative:
            path.append(above)
            above = above.parent
        return path

    def sees(self, node: Node) -> bool:
        """Tells whether the node is tentative here or on the trunk."""
        return node in self.tentative or any(span.holds(node) for span in self.spans)

    def fork(self, node: Node | None = None) -> Tree:
        """Returns a new tree on the path to `node` (None: the tip), sharing every key and value on it."""
        at = node or self.tip
        assert at is not None, "an empty tree has nothing to fork"
        twin = Tree(self.cache, reserve=self._reserve)
        twin.watch = self.watch
        twin.spans = [span.copy() for span in self.spans]
        for tentative in at.path(self.tip):
            twin._add_to_trunk(tentative)
        twin.tip = at
        at.pins += 1
        return twin

    def release(self) -> None:
        """Frees every node that no other tree holds."""
        self._drop(list(self.tentative))
        tip, self.tip = self.tip, None
        self.spans = []
        if tip is not None:
            tip.unpin()
        for region in self._regions:
            if region.owner is self:
                region.trim()
        self._regions = []

    def _commit(self, node: Node) -> None:
        if node is self.tip:
            return
        path, before = node.path(self.tip), self.tip
        self.tip = node  # stays pinned, as it was while tentative
        for committed in path:
            del self.tentative[committed]
            self._add_to_trunk(committed)
        for above in [before, *path[:-1]]:
            if above is not None:
                above.unpin()
        if self.watch is not None:
            self.watch.committed(path)

    def _drop(self, nodes: Sequence[Node]) -> None:
        if self.watch is not None and nodes:
            self.watch.freed(nodes)
        for node in reversed(nodes):  # children were grown after their parents
            del self.tentative[node]
            node.unpin()

    def _add_to_trunk(self, node: Node) -> None:
        if not self.spans or not self.spans[-1].add(node):
            self.spans.append(TrunkSpan(node))

    def _region_below(self, parent: Node | None) -> Region:
        """Returns a region with a free slot for a child of `parent`: its own, this tree's last one, or a new one."""
        for region in (parent.region if parent else None, self._regions[-1] if self._regions else None):
            if region is None or not self._owns(region):
                continue
            if region.available or (region.size and (region.extend(max(STEP, region.size // 2)) or region.extend(1))):
                return region
        region = self.cache.region(min(self._reserve, self.cache.limit))
        region.owner = self
        self._regions.append(region)
        self._reserve = max(STEP, self._reserve // 2)
        return region

    def _owns(self, region: Region) -> bool:
        """Tells whether this tree fills the region. It takes over one that no tree fills and that its trunk ends in."""
        tip = self.tip
        ends_here = tip is not None and tip.region is region and tip.slot == region.start + region.top - 1
        if region.owner is None and ends_here:
            region.owner = self
            self._regions.append(region)
        return region.owner is self
