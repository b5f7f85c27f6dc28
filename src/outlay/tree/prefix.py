"""Prefix cache: a radix tree over token ids whose edges hold nodes of the token tree.

Nodes are inserted as soon as a submission is admitted, computed or not. So submissions that arrive together share their
prefix too: the first pass that needs a node computes it, for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from outlay.tree.token_tree import Node


class _Edge:
    """Nodes in a row without a branch. The last node is pinned; child edges start below it."""

    __slots__ = ("children", "nodes", "used")

    def __init__(self, nodes: list[Node], used: int) -> None:
        self.nodes, self.used = nodes, used
        self.children: dict[int, _Edge] = {}


class PrefixCache:
    """Holds paths of tokens for reuse, and evicts the least recently used ends first."""

    def __init__(self) -> None:
        self._root = _Edge([], 0)
        self._clock = count(1)

    def match(self, tokens: Sequence[int]) -> Node | None:
        """Returns the last node of the longest cached prefix of `tokens`, or None."""
        edge, found, now = self._root, None, next(self._clock)
        while (child := edge.children.get(tokens[0] if tokens else -1)) is not None:
            child.used = now
            same = _common(child.nodes, tokens)
            found, tokens = child.nodes[same - 1], tokens[same:]
            if same < len(child.nodes):
                break
            edge = child
        return found

    def insert(self, path: Sequence[Node]) -> None:
        """Inserts a path from a root down. Where its tokens are cached already, the cached nodes stay."""
        edge, now = self._root, next(self._clock)
        rest = list(path)
        while rest:
            child = edge.children.get(rest[0].token)
            if child is None:
                edge.children[rest[0].token] = _Edge(rest, now)
                rest[-1].pins += 1
                return
            child.used = now
            same = _common(child.nodes, [node.token for node in rest[: len(child.nodes)]])
            rest = rest[same:]
            if same < len(child.nodes):
                self._split(child, same)
            edge = child

    def evict(self) -> bool:
        """Evicts the least recently used end of a path that nothing else holds; tells whether there was one."""
        return self._evict(lambda node: node.pins == 1 and node.children == 0)

    def _evict(self, wanted: Callable[[Node], bool]) -> bool:
        """Evicts the least recently used end of a path whose last node is `wanted`; tells whether there was one."""
        oldest: tuple[_Edge, int] | None = None
        stack = [self._root]
        while stack:
            edge = stack.pop()
            for token, child in edge.children.items():
                if child.children:
                    stack.append(child)
                elif wanted(child.nodes[-1]) and (oldest is None or child.used < oldest[0].children[oldest[1]].used):
                    oldest = edge, token
        if oldest is None:
            return False
        edge, token = oldest
        edge.children.pop(token).nodes[-1].unpin()
        return True

    def clear(self) -> None:
        """Evicts everything."""
        while self._evict(lambda node: True):
            pass

    def _split(self, edge: _Edge, at: int) -> None:
        below = _Edge(edge.nodes[at:], edge.used)
        below.children, edge.children = edge.children, {edge.nodes[at].token: below}
        edge.nodes = edge.nodes[:at]
        edge.nodes[-1].pins += 1


def _common(nodes: Sequence[Node], tokens: Sequence[int]) -> int:
    """Returns the length of the common prefix."""
    same = 0
    for node, token in zip(nodes, tokens, strict=False):
        if node.token != token:
            break
        same += 1
    return same
