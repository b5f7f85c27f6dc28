"""The token tree: a node is one token after one prefix; its key and value are computed once and live in one slot.

A `Tree` belongs to one run. Its *trunk* is the path of committed nodes to `tip`; the nodes below the tip are
*tentative*. `extend` grows tentative nodes, `keep` commits a path of them, `free` drops some, `fork` starts another
tree on the same path. None of these copies keys or values: trees share nodes, and a node lives as long as a tree, a
child or a pin holds it.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from outlay.errors import FailureError
from outlay.tree.cache import Cache, Region
from outlay.tree.stored import NOWHERE, Segment, StoredTrunk
from outlay.tree.visual import VisualToken

if TYPE_CHECKING:
    from outlay.tree.memory import Memory
    from outlay.tree.plan import BreakEven

NO_TOKEN = -1  # token of a node that is an input embedding alone
STEP = 64  # slots by which a region grows at least
CONTIGUOUS = 32  # a span of contiguous slots stays contiguous from this length on; a new span takes what follows


class Node:
    """One token after one prefix.

    Attributes:
        token: the token's id, or `NO_TOKEN` for an input embedding alone.
        position: how many tokens precede it in its text.
        slot: where its key and value lie in the cache; -1 where they were dropped.
        computed: whether they lie there already.
        has_state: whether its hidden state was stored when it was computed.
        origin: what proposed the token; empty for the model's own choice.
        head: the first node of the stretch that ends here: nodes below one another in slots side by side.
        input_embed: input embedding [hidden_size] that the model reads with the token or in its place, if any: see
            `Decoder.inputs`. A `VisualToken` stands for one that a vision tower makes when a pass needs it.
    """

    __slots__ = (
        "children", "computed", "has_state", "head", "input_embed", "origin", "parent", "pins", "position", "region",
        "slot", "token", "tree",
    )  # fmt: skip

    def __init__(
        self, tree: Tree, parent: Node | None, token: int, region: Region, origin: str = "", slot: int | None = None
    ) -> None:
        """Makes a node in a slot that is allocated already, or in the region's next one."""
        self.tree, self.parent, self.token, self.region, self.origin = tree, parent, token, region, origin
        self.position: int = parent.position + 1 if parent else 0
        self.slot = region.allocate(self.position) if slot is None else slot
        self.children = 0
        self.pins = 1  # the tree's own
        self.computed = self.has_state = False
        self.input_embed: Tensor | VisualToken | None = None
        self.head: Node = self
        if parent is not None:
            parent.children += 1
            if parent.region is region and parent.slot + 1 == self.slot:
                self.head = parent.head

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
    def key(self) -> int:
        """What tells it from its siblings: its token's id, or the pixels that it stands for."""
        embed = self.input_embed
        return embed.key if isinstance(embed, VisualToken) else self.token

    @property
    def held(self) -> bool:
        """Whether a tree, a child or a pin holds it."""
        return self.pins > 0 or self.children > 0

    def unpin(self) -> None:
        """Removes a pin, and frees this node and those above that nothing holds any more."""
        self.pins -= 1
        node: Node | None = self
        while node is not None and not node.held:
            if node.slot >= 0:
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

    def __init__(self, node: Node, count: int = 1) -> None:
        self.region, self.base, self.start = node.region, node.position, node.slot
        self.count = count
        self.slots: array[int] | None = None

    def add(self, node: Node, count: int = 1) -> bool:
        """Adds the trunk's next nodes, `count` side by side, unless a span of their own should begin; tells whether."""
        if node.region is not self.region:
            return False
        if self.slots is None and node.slot != self.start + self.count:
            if self.count >= CONTIGUOUS:
                return False
            self.slots = array("q", range(self.start, self.start + self.count))
        if self.slots is not None:
            self.slots.extend(range(node.slot, node.slot + count))
        self.count += count
        return True

    def holds(self, node: Node) -> bool:
        """Tells whether the node lies in this span."""
        index = node.position - self.base
        if not 0 <= index < self.count:
            return False
        return node.slot == (self.start + index if self.slots is None else self.slots[index])

    def cut(self, count: int) -> None:
        """Keeps the first `count` tokens."""
        self.count = count
        if self.slots is not None:
            del self.slots[count:]

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
        block: nodes of the trunk see the blocks of this many positions up to the end of their own; 1 is causal.
        sharing: when its rows read apart what they share with others; None where what pays decides. Forks inherit it.
        memory: what all of its nodes read beside their path, made by an encoder; None where there is none. Forks
            inherit it.
        private_below: a node of the trunk below which nothing is ever shared with other runs, because keys and values
            there are not what a plain pass computes; None where all may be. Forks inherit it.
        dropped: how many committed nodes below it have no slot any more, side by side in the text. Forks inherit it.
        stored: what a cache policy holds of the trunk's beginning, whose nodes have no slots and are in no span; None
            where no policy does. Forks share it.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        after: Node | None = None,
        reserve: int = STEP,
        block: int = 1,
        memory: Memory | None = None,
    ) -> None:
        """Starts a tree.

        Args:
            cache: where keys and values live.
            after: a node of another tree, whose path this one shares; None for an empty tree.
            reserve: how many tokens the caller expects to add. They get contiguous slots if the cache has them.
            block: positions of a block that see each other. Only whole blocks are added to the trunk.
            memory: what its nodes read beside their path. `after` lies below the same.
        """
        self.cache, self.block, self.memory = cache, block, memory
        self.tip = after
        self.spans: list[TrunkSpan] = []
        self.tentative: dict[Node, None] = {}
        self.watch: Watcher | None = None
        self.sharing: BreakEven | None = None
        self.private_below: Node | None = None
        self.dropped = 0
        self.stored: StoredTrunk | None = None
        self._reserve = reserve
        self._regions: list[Region] = []
        if after is not None:
            after.pins += 1
            for first, count in _stretches(after):
                self._add_to_trunk(first, count)

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

    def append(self, tokens: Sequence[int], visual: Mapping[int, VisualToken] | None = None) -> None:
        """Commits `tokens` one after the other below the tip. No node may be tentative.

        Args:
            tokens: token ids.
            visual: by their place in `tokens`, those that stand for images, and what they read in place of a token.
        """
        assert not self.tentative, "a trunk grows only when nothing is tentative"
        region: Region | None = None
        before = self.tip
        for place, token in enumerate(tokens):
            if region is None or not region.available:
                region = self._region_below(self.tip)
            seen = visual.get(place) if visual else None
            above, self.tip = self.tip, Node(self, self.tip, token if seen is None else NO_TOKEN, region)
            self.tip.input_embed = seen
            self._add_to_trunk(self.tip)
            if above is not None:
                above.unpin()

        if self.watch is not None and self.tip is not None and tokens:
            grown = self.tip.path(before)
            self.watch.grew(grown)
            self.watch.committed(grown)

    def append_stored(self, tokens: Sequence[int], visual: Mapping[int, VisualToken] | None = None) -> None:
        """Commits a prompt without slots, for a policy to hold. The tree is empty; `visual` is as in `append`."""
        assert self.tip is None, "what a policy holds begins a text"
        nodes: list[Node] = []
        for place, token in enumerate(tokens):
            seen = visual.get(place) if visual else None
            nodes.append(Node(self, nodes[-1] if nodes else None, token if seen is None else NO_TOKEN, NOWHERE))
            nodes[-1].input_embed = seen
            if len(nodes) > 1:
                nodes[-2].unpin()
        self.tip = nodes[-1] if nodes else None
        self.stored = StoredTrunk([Segment(self.cache, 0, nodes)])

    def store(self, segment: Segment) -> None:
        """Takes a filled segment in place of the trunk's tokens from its first position to its last."""
        assert self.stored is not None, "a policy holds the beginning of the trunk"
        fresh = [node for node in segment.nodes if node.region is not NOWHERE]
        self.stored.replace(segment)
        self.stored.lingering += fresh
        last, self.spans = segment.end, []
        assert self.tip is not None, "stored tokens are committed"
        for node in self.tip.path(segment.nodes[-1]):
            assert node.position >= last, "what follows a segment is plain"
            self._add_to_trunk(node)

    def free_stored(self, trees: Sequence[Tree]) -> None:
        """Frees the slots of stored tokens that none of `trees`, all those of the run, reads any more."""
        assert self.stored is not None, "a policy holds the beginning of the trunk"
        still: list[Node] = []
        for node in self.stored.lingering:
            if node.region is NOWHERE:
                continue
            if any(tree.reads(node) for tree in trees):
                still.append(node)
                continue
            node.region.free(node.slot)
            node.region, node.slot, node.head = NOWHERE, -1, node
        self.stored.lingering = still

    def adopt(self, token: int, region: Region, slot: int, *, has_state: bool = False) -> None:
        """Commits a token below the tip whose key and value lie in a slot already, such as one of a finished block."""
        above, self.tip = self.tip, Node(self, self.tip, token, region, slot=slot)
        self.tip.computed, self.tip.has_state = True, has_state
        self._add_to_trunk(self.tip)
        if above is not None:
            above.unpin()

    def take_over(self, region: Region) -> None:
        """Owns a region from now on, and gives it up with the others."""
        region.owner = self
        self._regions.append(region)

    def reach(self, position: int) -> int:
        """Returns how many tokens of the text a node of the trunk at a position sees."""
        return position + 1 if self.block == 1 else (position // self.block + 1) * self.block

    def dropped_above(self, position: int) -> int:
        """Returns how many nodes above one at a position have no slot any more: none of a prompt that others share."""
        if not self.dropped:
            return 0
        assert self.private_below is not None, "only private text is dropped"
        return self.dropped if position > self.private_below.position else 0

    def keep(self, node: Node, behind: Sequence[Node] = ()) -> None:
        """Commits the path to `node`, which becomes the tip, and frees every other tentative node.

        Args:
            node: a tentative node, or the tip.
            behind: tentative nodes below it, the paths to which stay tentative.
        """
        self.prune([node, *behind])
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

    def drop_slots(self, nodes: Sequence[Node]) -> None:
        """Frees the slots of committed nodes, which stay part of the text.

        Args:
            nodes: Nodes side by side below `private_below`: the first that this tree ever drops, then those that follow
                what was dropped before.
        """
        if not nodes:
            return
        assert self.tip is not None, "the tree has nodes"
        kept = self.tip.path(nodes[-1])
        self._cut_trunk(nodes[0].position)
        for node in nodes:
            node.region.free(node.slot)
            node.slot = -1
        self.dropped += len(nodes)
        self.spans.append(TrunkSpan(kept[0]))  # a span has no gap
        for node in kept[1:]:
            self._add_to_trunk(node)

    def make_private(self, after: Node) -> None:
        """Makes the text below a node of the trunk this tree's own from now on; what others may hold is grown anew."""
        assert self.tip is not None, "the tree has nodes"
        self.private_below, old = after, self.tip
        tokens = [node.token for node in old.path(after)]
        if tokens:
            self._cut_trunk(after.position + 1)
            self.tip = after
            after.pins += 1
            old.unpin()
            self.append(tokens)

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
        return self.reads(node) or (self.stored is not None and self.stored.holds(node))

    def reads(self, node: Node) -> bool:
        """Tells whether the node's slot is read here: it is tentative, or on the trunk and not stored."""
        return node in self.tentative or any(span.holds(node) for span in self.spans)

    def fork(self, node: Node | None = None) -> Tree:
        """Returns a new tree on the path to `node` (None: the tip), sharing every key and value on it."""
        at = node or self.tip
        assert at is not None, "an empty tree has nothing to fork"
        twin = Tree(self.cache, reserve=self._reserve, block=self.block, memory=self.memory)
        twin.watch, twin.sharing = self.watch, self.sharing
        twin.private_below, twin.dropped = self.private_below, self.dropped
        twin.stored = None if self.stored is None else self.stored.fork()
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
        if self.stored is not None:
            self.stored.release()
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

    def _add_to_trunk(self, node: Node, count: int = 1) -> None:
        """Adds the trunk's next node, or the `count` of a stretch that begins with it."""
        if not self.spans or not self.spans[-1].add(node, count):
            self.spans.append(TrunkSpan(node, count))

    def _cut_trunk(self, position: int) -> None:
        """Takes what begins at a position out of the spans."""
        while self.spans and self.spans[-1].base >= position:
            self.spans.pop()
        if self.spans and position - self.spans[-1].base < self.spans[-1].count:
            self.spans[-1].cut(position - self.spans[-1].base)

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


def _stretches(node: Node) -> list[tuple[Node, int]]:
    """Returns the stretches of the path to a node, from the root down: the first node of each, and how many it has."""
    stretches: list[tuple[Node, int]] = []
    end: Node | None = node
    while end is not None:
        stretches.append((end.head, end.position - end.head.position + 1))
        end = end.head.parent
    stretches.reverse()
    return stretches
