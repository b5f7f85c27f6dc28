"""Fewer keys and values than tokens: each layer keeps its own tokens of a text, as many as the others do.

A slot holds a token's keys and values of all layers, so what layers keep is moved, layer by layer, into the slots of
the last tokens, and the slots of the first are freed. Keys were turned to their positions before, so positions stay.
What is left is the text's alone: it is never shared by the prefix cache.

These are no segments of `tree/stored.py`, by which cache policies drop tokens too, and neither can carry the other. A
slot is read by every pass, the native ones included, beside a prompt that others share, and under views that hide keys
by their place; but it holds a token in all layers, in the cache's own format. A segment holds another number of tokens
in each layer, in any bits; but it begins with the whole prompt, shares nothing with other runs, and is read by passes
of its own, layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from outlay.tree.token_tree import Node, Tree


def held_after(tree: Tree, after: Node) -> list[Node]:
    """Returns the nodes of the trunk below `after` whose slots hold keys and values, in order."""
    assert tree.tip is not None, "the tree holds `after`"
    return [node for node in tree.tip.path(after) if node.slot >= 0 and node.computed]


def keep_in_layers(tree: Tree, after: Node, kept: Sequence[Sequence[int]]) -> None:
    """Keeps some keys and values of each layer, and frees the slots that are left over.

    Args:
        tree: A tree that shares nothing below `after`.
        after: The node below which tokens are dropped.
        kept: For each layer the places among `held_after` that it keeps, ascending; as many in each layer.
    """
    nodes = held_after(tree, after)
    count = len(kept[0])
    assert 0 < count <= len(nodes), "a layer keeps one token at least"
    assert all(len(places) == count for places in kept), "layers keep equally many tokens"
    holders = [node.slot for node in nodes[len(nodes) - count :]]
    for layer, places in enumerate(kept):
        tree.cache.copy_layer(layer, [nodes[place].slot for place in places], holders)
    tree.drop_slots(nodes[: len(nodes) - count])


def merge_oldest(tree: Tree, after: Node, count: int) -> None:
    """Replaces the oldest `count` keys and values below `after` by their mean, in each layer, and frees their slots.

    Args:
        tree: A tree that shares nothing below `after`.
        after: The node below which tokens are merged.
        count: Tokens that become one.
    """
    nodes = held_after(tree, after)[:count]
    slots, into = (torch.tensor([node.slot for node in part], device=tree.cache.device) for part in (nodes, nodes[-1:]))
    for layer in range(tree.cache.config.num_layers):
        keys, values = tree.cache.read(layer, slots, torch.float32)  # [num_kv_heads, count, head_dim]
        tree.cache.write(layer, into, keys.mean(1)[None], values.mean(1)[None])
    tree.drop_slots(nodes[:-1])
