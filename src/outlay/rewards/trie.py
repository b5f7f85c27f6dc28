"""Texts at one model, each prefix once: what a reward model reads for one run."""

from __future__ import annotations

from outlay.engine.seat import Seat
from outlay.tree.token_tree import Node


class Trie:
    """The texts at one seat, as far as they begin alike.

    Args:
        seat: The seat, whose tree holds what all texts begin with.
        tokens: The tokens of the first text.

    Attributes:
        seat: The seat.
        begin: What all texts begin with.
        tip: The last node of that.
        nodes: The nodes at which texts end or have ended.
    """

    def __init__(self, seat: Seat, tokens: list[int]) -> None:
        assert seat.tree.tip is not None, "a seat's tree holds what it was planted with"
        self.seat, self.tip = seat, seat.tree.tip
        self.begin = tokens[: self.tip.position + 1]
        self.nodes: set[Node] = {self.tip}
        self._below: dict[tuple[Node, int], Node] = {}

    def grow(self, tokens: list[int]) -> Node:
        """Returns the node of a text that begins with `begin`, grown where it isn't there yet."""
        return self.extend(self.tip, tokens[len(self.begin) :])

    def extend(self, node: Node, tokens: list[int]) -> Node:
        """Returns the node at the end of `tokens` after a node."""
        at = 0
        while at < len(tokens) and (below := self._below.get((node, tokens[at]))) is not None:
            node, at = below, at + 1
        rest = tokens[at:]
        if not rest:
            return node
        grown = self.seat.tree.extend([node, *range(len(rest) - 1)], rest, "scored")
        for above, below in zip([node, *grown[:-1]], grown, strict=True):
            self._below[above, below.token] = below
        self.nodes.update(grown)
        return grown[-1]
