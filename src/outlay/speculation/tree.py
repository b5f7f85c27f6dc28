"""The tree of what is proposed after a text: tokens with their parents, before any model has scored them.

It is plain data. Siblings stand in the order in which they were proposed, which verifiers depend on; a token that was
drawn several times after the same text is one node that counts its `copies`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

ROOT = -1  # the index of the text's end, of which the first tokens are the children


@dataclass
class DraftTree:
    """`parents[i]` is the index of what node i follows, `ROOT` or a smaller index. `laws[i]` is the distribution,
    float32 [vocab], that the children of i were drawn from; a node without one has children that were chosen, not
    drawn."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    copies: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    laws: dict[int, Tensor] = field(default_factory=dict)
    _below: dict[int, dict[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depth(self) -> int:
        """How many tokens the longest path has."""
        return max(self.depths, default=0)

    def add(self, parent: int, token: int, origin: str) -> int:
        """Returns the node of `token` after `parent`: a new one, or the one that is there with a copy more."""
        siblings = self._below.setdefault(parent, {})
        if token in siblings:
            self.copies[siblings[token]] += 1
            return siblings[token]
        index = siblings[token] = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.origins.append(origin)
        self.copies.append(1)
        self.depths.append(1 if parent == ROOT else self.depths[parent] + 1)
        return index

    def chain(self, tokens: Sequence[int], origin: str, parent: int = ROOT) -> None:
        """Adds `tokens`, one after the other."""
        for token in tokens:
            parent = self.add(parent, token, origin)

    def child(self, parent: int, token: int) -> int | None:
        """Returns the node of `token` after `parent`, if it was proposed."""
        return self._below.get(parent, {}).get(token)

    def children(self, parent: int) -> list[int]:
        """Returns what was proposed after `parent`, in order."""
        return list(self._below.get(parent, {}).values())

    def along(self, tokens: Sequence[int]) -> list[int]:
        """Returns the nodes that `tokens` lead down, as far as they were proposed."""
        nodes, at = [], ROOT
        for token in tokens:
            child = self.child(at, token)
            if child is None:
                break
            nodes.append(child)
            at = child
        return nodes

    def way(self, node: int) -> list[int]:
        """Returns the nodes from the first one down to `node`."""
        nodes = []
        while node != ROOT:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def path(self, node: int) -> list[int]:
        """Returns the tokens from the first one down to `node`."""
        return [self.tokens[at] for at in self.way(node)]

    def cut(self, nodes: int, depth: int) -> DraftTree:
        """Returns the tree without what lies deeper than `depth` and, of the rest, with the first `nodes` nodes.

        A tree that is cut this way is one that could have been drafted: whether a node stays does not depend on which
        token it is.
        """
        if len(self) <= nodes and self.depth <= depth:
            return self
        smaller = DraftTree(laws=self.laws)
        places = {ROOT: ROOT}
        for index, parent in enumerate(self.parents):
            if self.depths[index] <= depth and parent in places and len(smaller) < nodes:
                places[index] = smaller.add(places[parent], self.tokens[index], self.origins[index])
                smaller.copies[places[index]] = self.copies[index]
        smaller.laws = {places[node]: law for node, law in self.laws.items() if node in places}
        return smaller
