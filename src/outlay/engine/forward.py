"""The request for a forward pass over nodes of a token tree, and how it is put together from one or several passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from outlay.engine.passes import LogitsWanted, PassOutput, join
from outlay.engine.request import Request
from outlay.kernels import TokenDraw, Top
from outlay.tree.canvas import Row
from outlay.tree.token_tree import Node, Tree


@dataclass(eq=False)
class Forward(Request):
    """Logits of `nodes`: the result is float32 [len(nodes), vocab], in their order.

    With `topk` it is a `Top` of each node's largest logits, with their log-sum-exp if `lse`. Where tokens are `named`
    for each node, it is a list of their `NamedLogprobs`; with one of `draws` for each node, the list of drawn tokens.
    With `layer_states` it is a pair, the logits and the hidden states after every layer; with `attention`, the logits
    and what each node reads. What lies above a node and is not computed yet, such as the prompt, is computed first, in
    chunks.
    """

    nodes: tuple[Node, ...]
    trees: Sequence[Tree] = ()
    """The trees of the run that asks. Each node is in the tree that grew it, or in one of these."""
    owed: Sequence[Node] = ()
    """Computed nodes whose hidden states were not stored, and are to be."""
    layer_states: bool = False
    attention: bool = False
    topk: int = 0
    lse: bool = False
    named: Sequence[Sequence[int]] = ()
    draws: Sequence[TokenDraw] = ()
    keep_raw_logits: bool = False

    pending: list[Node] = field(default_factory=list, init=False)
    """Nodes that are still to be computed, each after those above it."""

    turn: int = field(default=-1, init=False)
    """Place among the prompts that are read; -1 before it has one."""

    turn_rows: int = field(default=0, init=False)
    """Rows of a prompt that were read in this turn."""

    raw_logits: dict[Node, Tensor] = field(default_factory=dict, init=False)
    """The logits [vocab] of each of `nodes`, where they are stored."""

    _rows: dict[Node, tuple[PassOutput, int]] = field(default_factory=dict, init=False)

    def update_pending(self) -> None:
        """Finds out what is to be computed: at the first call all of it, then what nobody computed meanwhile."""
        if not self.pending and not self._rows:
            self.pending = list(dict.fromkeys([*self.owed, *uncomputed(self.nodes)]))
        elif self.pending and self.pending[0].computed:
            self.pending = self._still_pending()

    @property
    def begun(self) -> bool:
        """Whether it is known what is to be computed."""
        return bool(self.pending or self._rows)

    def tree_of(self, node: Node) -> Tree | None:
        """Returns a tree that holds a node: the one that grew it may have given it up. None where no other does."""
        if node.tree.sees(node):
            return node.tree
        return next((tree for tree in self.trees if tree.sees(node)), None)

    def settle(self, computed: Sequence[Node], output: PassOutput, places: Mapping[Row, int]) -> None:
        """Takes in the rows of a pass, and finishes the request when it has all of them.

        Args:
            computed: The nodes that the pass computed for this request.
            output: What the pass gave.
            places: The row of `output` for each node that has one.
        """
        if self.keep_raw_logits and output.logits is not None:
            for node in {*computed} & {*self.nodes}:
                self.raw_logits[node] = output.logits[places[node]]

        if not self._rows and len(computed) == len(self.pending):  # one pass computes all of it
            rows = [(output, places[node]) for node in self.nodes]
        else:
            asked = set(self.nodes)
            self._rows.update((node, (output, places[node])) for node in computed if node in asked)
            self.pending = self._still_pending()
            if self.pending:
                return
            rows = [self._rows[node] for node in self.nodes]
        if self.named:
            result: Any = [each.named[row] for each, row in rows]
        elif self.draws:
            result = [each.drawn[row][draw] for (each, row), draw in zip(rows, self.draws, strict=True)]
        else:
            result = gather_rows(rows, self.topk)
        if self.attention:
            result = result, [each.attention[row] for each, row in rows]
        self.finish((result, gather_layer_states(rows)) if self.layer_states else result)

    def _still_pending(self) -> list[Node]:
        """Returns pending nodes that were not computed meanwhile, or lack their state or a row that is asked for."""
        missing, owed = set(self.nodes) - self._rows.keys(), set(self.owed)
        return [
            node
            for node in self.pending
            if not node.computed or node in missing or (node in owed and not node.has_state)
        ]


def uncomputed(nodes: Sequence[Node]) -> list[Node]:
    """Returns `nodes` and what lies above them and is not computed yet, each after its parent."""
    pending: dict[Node, None] = {}
    for node in nodes:
        above, at = [], node.parent
        while at is not None and not at.computed and at not in pending:
            above.append(at)
            at = at.parent
        pending.update(dict.fromkeys(reversed(above)))
        pending[node] = None
    return list(pending)


def wanted_by(forwards: Sequence[Forward], heads: Sequence[Row]) -> LogitsWanted:
    """Returns what all of these requests need of the rows that have logits, together."""
    logits = any(
        not (forward.topk or forward.named or forward.draws) or forward.keep_raw_logits for forward in forwards
    )
    watched = {node for forward in forwards if forward.attention for node in forward.nodes}
    named: dict[Row, list[int]] = {}
    draws: dict[Row, dict[TokenDraw, None]] = {}
    for forward in forwards:
        for node, draw in zip(forward.nodes, forward.draws, strict=False):
            draws.setdefault(node, {})[draw] = None
        for node, tokens in zip(forward.nodes, forward.named, strict=False):
            named.setdefault(node, []).extend(tokens)
    return LogitsWanted(
        logits,
        max(forward.topk for forward in forwards),
        any(forward.lse for forward in forwards),
        [named.get(node, ()) for node in heads] if named else (),
        any(forward.layer_states for forward in forwards),
        [tuple(draws.get(node, ())) for node in heads] if draws else (),
        [node in watched for node in heads] if watched else (),
    )


def gather_rows(rows: Sequence[tuple[PassOutput, int]], topk: int) -> Tensor | Top:
    """Returns rows of one or several passes as one; without a copy where they lie side by side."""
    first, begin = rows[0]
    if all(output is first and place == begin + index for index, (output, place) in enumerate(rows)):
        return first.rows(begin, begin + len(rows), topk)
    return join([output.rows(place, place + 1, topk) for output, place in rows])


def gather_layer_states(rows: Sequence[tuple[PassOutput, int]]) -> Tensor:
    """Returns the hidden states after every layer of rows of one or several passes, [rows, layers + 1, hidden_size]."""
    states = [output.layer_states[place] for output, place in rows if output.layer_states is not None]
    assert len(states) == len(rows), "the passes were asked for them"
    return torch.stack(states)
