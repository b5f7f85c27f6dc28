"""Prefix cache: a radix tree over token ids whose edges hold nodes of the token tree.

Where a node stands for pixels, their digest is compared in place of an id (`Node.key`): prompts that differ only in
their images share no node of an image.

Nodes are inserted as soon as a submission is admitted, computed or not. So submissions that arrive together share their
prefix too: the first pass that needs a node computes it, for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from outlay.tree.token_tree import Node


class _Edge:
    """Nodes in a row without a branch, with their keys. The last node is pinned; child edges start below it."""

    __slots__ = ("children", "keys", "nodes", "used")

    def __init__(self, nodes: list[Node], used: int) -> None:
        self.nodes, self.used = nodes, used
        self.keys = [node.key for node in nodes]
        self.children: dict[int, _Edge] = {}

    @property
    def base(self) -> int:
        """The position of its first token."""
        return self.nodes[0].position


class PrefixCache:
    """Holds paths of tokens for reuse, and evicts the least recently used ends first."""

    def __init__(self) -> None:
        self._root = _Edge([], 0)
        self._edges: dict[Node, _Edge] = {}  # the edge of each node, so that a path is found from its end
        self._clock = count(1)

    def match(self, keys: Sequence[int], block: int = 1, after: Node | None = None) -> Node | None:
        """Returns the last node of the longest cached prefix of a prompt, or None.

        Args:
            keys: Token ids, and the keys of visual tokens (`outlay.models.images.keys_of`).
            block: How many positions see each other. Only whole blocks match, computed with blocks of this size.
            after: A node behind whose path they stand: where it is cached, that path is not looked at.
        """
        edge, place = self._place(after)
        found, keys, at, now = after, list(keys), 0, next(self._clock)
        if after is not None and after not in self._edges:
            found, keys = None, [*(node.key for node in after.path()), *keys]
        while at < len(keys):
            if place == len(edge.nodes):
                child = edge.children.get(keys[at])
                if child is None:
                    break
                edge, place = child, 0
            edge.used = now
            same = common_length(edge.keys[place:], keys[at:])
            if not same:
                break
            place, at = place + same, at + same
            found = edge.nodes[place - 1]
        if after is not None and (found is None or found.position < after.position):
            found = after
        while found is not None and (found.position + 1) % block:
            found = found.parent
        return found if found is None or found.tree.block == block else None

    def insert(self, node: Node) -> None:
        """Inserts the path to a node. Where its tokens are cached already, the cached nodes stay."""
        fresh: list[Node] = []
        known: Node | None = node
        while known is not None and known not in self._edges:
            fresh.append(known)
            known = known.parent
        fresh.reverse()
        edge, place = self._place(known)
        at, now = 0, next(self._clock)
        edge.used = now
        keys = [each.key for each in fresh]
        while at < len(fresh):
            if place < len(edge.nodes):
                same = common_length(edge.keys[place:], keys[at:])
                place, at = place + same, at + same
                if at == len(fresh):
                    return
                if place < len(edge.nodes):
                    self._split(edge, place)
            child = edge.children.get(keys[at])
            if child is None:
                edge.children[keys[at]] = self._held(_Edge(fresh[at:], now))
                node.pins += 1
                return
            edge, place = child, 0
            edge.used = now

    def evict(self) -> bool:
        """Evicts the least recently used end of a path that nothing else holds; tells whether there was one."""
        return self._evict(lambda node: node.pins == 1 and node.children == 0)

    def _evict(self, wanted: Callable[[Node], bool]) -> bool:
        """Evicts the least recently used end of a path whose last node is `wanted`; tells whether there was one."""
        oldest: tuple[_Edge, int] | None = None
        stack = [self._root]
        while stack:
            edge = stack.pop()
            for key, child in edge.children.items():
                if child.children:
                    stack.append(child)
                elif wanted(child.nodes[-1]) and (oldest is None or child.used < oldest[0].children[oldest[1]].used):
                    oldest = edge, key
        if oldest is None:
            return False
        edge, key = oldest
        gone = edge.children.pop(key)
        for node in gone.nodes:
            del self._edges[node]
        gone.nodes[-1].unpin()
        return True

    def clear(self) -> None:
        """Evicts everything."""
        while self._evict(lambda node: True):
            pass

    def _place(self, node: Node | None) -> tuple[_Edge, int]:
        """Returns the edge of a node and the place behind it; the root for None."""
        if node is None or node not in self._edges:
            return self._root, 0
        edge = self._edges[node]
        return edge, node.position - edge.base + 1

    def _held(self, edge: _Edge) -> _Edge:
        self._edges.update(dict.fromkeys(edge.nodes, edge))
        return edge

    def _split(self, edge: _Edge, at: int) -> None:
        below = self._held(_Edge(edge.nodes[at:], edge.used))
        below.children, edge.children = edge.children, {edge.keys[at]: below}
        edge.nodes, edge.keys = edge.nodes[:at], edge.keys[:at]
        edge.nodes[-1].pins += 1


def common_length(one: list[int], other: list[int]) -> int:
    """Returns the length of the common beginning, by comparing halves of what is left."""
    same, rest = 0, min(len(one), len(other))
    while rest:
        step = (rest + 1) // 2
        if one[same : same + step] == other[same : same + step]:
            same, rest = same + step, rest - step
        else:
            rest = step - 1
    return same
