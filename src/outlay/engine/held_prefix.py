"""A prefix that is held on purpose: its keys and values, and the logits after its last token."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

from torch import Tensor

from outlay.models.images import keys_of
from outlay.tree.cache import Cache
from outlay.tree.prefix import common_length
from outlay.tree.token_tree import Node, Tree


class HeldPrefix:
    """The path to a computed node of a model's cache, which nobody evicts before `release`.

    Its slots are its own: no text goes on in them, so all that begin with it read it as one span.
    """

    def __init__(self, cache: Cache, node: Node, logits: MutableMapping[Node, Tensor]) -> None:
        """`logits`: the model's, by node, from which those of this node are taken at the end."""
        self.nodes = node.path()
        self.tokens = [each.token for each in self.nodes]
        self._keys = [each.key for each in self.nodes]
        self._logits = logits
        self._tree = Tree(cache, after=node)
        node.region.trim(self._tree)
        self._tree.take_over(node.region)

    @property
    def released(self) -> bool:
        """Whether it is no longer held."""
        return self._tree.tip is None

    def node_in(self, prompt: Sequence[int]) -> Node | None:
        """Returns the last node that a prompt shares: never its last token, unless that ends both; None without one."""
        if self.released:
            return None
        length, keys = len(self._keys), list(keys_of(prompt))
        begins = keys[:length] == self._keys  # as a rule: halves are not compared one by one then
        same = length if begins else common_length(self._keys, keys)
        if same == len(keys) and same < length:
            same -= 1
        return self.nodes[same - 1] if same else None

    def release(self) -> None:
        """Gives up what is held, once. What runs have planted on it stays theirs."""
        self._logits.pop(self.nodes[-1], None)
        self._tree.release()
