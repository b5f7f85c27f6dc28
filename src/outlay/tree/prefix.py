"""Reuse of what earlier requests computed: a radix tree over token ids whose edges hold nodes of the token tree.

Nodes are entered as soon as a request is admitted, computed or not, so that requests that arrive together share their
prefix too: whoever needs a node first has it computed, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from outlay.tree.token_tree import Node


class _Edge:
    """A run of nodes without a branch. The last node is pinned; a child edge starts below it."""

    __slots__ = ("children", "nodes", "used")

    def __init__(self, nodes: list[Node], used: int) -> None:
        self.nodes, self.used = nodes, used
        self.children: dict[int, _Edge] = {}


class PrefixCache:
    """Remembers paths of tokens; `evict` forgets the least recently used ends first."""

    def __init__(self) -> None:
        self._root = _Edge([], 0)
        self._clock = count(1)

    def match(self, tokens: Sequence[int]) -> Node | None:
        """Returns the node of the longest remembered prefix of `tokens`, or None."""
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
        """Remembers a path from a root downwards. Where the same tokens are known already, the known nodes stay."""
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
        """Forgets the least recently used end of a path; tells whether there was one."""
        oldest: tuple[_Edge, int] | None = None
        stack = [self._root]
        while stack:
            edge = stack.pop()
            for token, child in edge.children.items():
                if child.children:
                    stack.append(child)
                elif oldest is None or child.used < oldest[0].children[oldest[1]].used:
                    oldest = edge, token
        if oldest is None:
            return False
        edge, token = oldest
        edge.children.pop(token).nodes[-1].unpin()
        return True

    def clear(self) -> None:
        """Forgets everything."""
        while self.evict():
            pass

    def _split(self, edge: _Edge, at: int) -> None:
        below = _Edge(edge.nodes[at:], edge.used)
        below.children, edge.children = edge.children, {edge.nodes[at].token: below}
        edge.nodes = edge.nodes[:at]
        edge.nodes[-1].pins += 1


def _common(nodes: Sequence[Node], tokens: Sequence[int]) -> int:
    same = 0
    for node, token in zip(nodes, tokens, strict=False):
        if node.token != token:
            break
        same += 1
    return same
