"""Passes over single tokens that see their keys otherwise than plain passes do: weighted, in part, or to some depth.

A row's view says which keys of its path it reads, and by what its attention to each is weighted. A pass to a depth runs
that many layers, then the final norm and the LM head; at depth 0 these alone, over the token's embedding. Rows of all
runs go through the linear layers together, layer by layer in torch; each attends by itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from outlay.budget import Account, Ledger
from outlay.engine.accounting import split_evenly
from outlay.engine.request import PassReport, Request, Served, Worker
from outlay.engine.worker import ModelWorker
from outlay.errors import FailureError
from outlay.models.decoder import Decoder
from outlay.tree.attention import beside_sinks
from outlay.tree.cache import Cache
from outlay.tree.token_tree import Node, Tree

HEAD_PRODUCTS, PARTIAL_PASSES = "head_products", "partial_passes"
COUNTS = {HEAD_PRODUCTS: "products with the LM head beside those of passes", PARTIAL_PASSES: "passes"}
"""The units of what these passes add to the ledger's extras, for `About.counts`."""


class View(NamedTuple):
    """What a row sees."""

    reads: Tensor | None = None
    """int64 [r], ascending: the keys of its path that it reads, by their place among those that are held, its own the
    last; None: all."""
    log_weights: Tensor | None = None
    """Float32 [layers, keys of the path]: what is added to the attention scores of each; None: nothing."""


class ViewedOutput(NamedTuple):
    """What a pass over a row found."""

    logits: Tensor
    """Float32 [vocab_size]."""
    attention: Tensor
    """Float32 [depth, keys of the path]: the mean over heads of what the row reads, 0 where it reads nothing."""


@dataclass(eq=False)
class ViewedForward(Request):
    """Asks for a `ViewedOutput` of one token under a view. What is above it is computed already.

    Where the depth is that of the model, the node is computed by it. With less the logits are those of an early exit.
    """

    tree: Tree
    """The tree that holds the node."""
    node: Node
    view: View
    depth: int
    position: int
    """The position that the model reads the token at: the node's own, or that of a token that it stands for."""
    keep_raw_logits: bool = False
    raw_logits: dict[Node, Tensor] = field(default_factory=dict, init=False)
    """The logits, where they are stored."""


class ViewWorker(Worker):
    """Serves `ViewedForward` requests of a model, beside its `ModelWorker`, whose cache it fills.

    Args:
        model: The worker of the model.
    """

    def __init__(self, model: ModelWorker) -> None:
        self._model, self.role, self.stage, self.ledger = model, model.role, "pass", Ledger()
        self._passes = 0

    def forward(
        self,
        account: Account,
        tree: Tree,
        node: Node,
        view: View,
        *,
        depth: int | None = None,
        position: int | None = None,
        keep_raw_logits: bool = False,
    ) -> ViewedForward:
        """Asks for a pass over a node.

        Args:
            account: Who pays.
            tree: The tree that holds the node.
            node: A node without computed key and value, below computed ones.
            view: What it sees.
            depth: Layers that are run; None: all.
            position: The position that it is read at; None: its own.
            keep_raw_logits: Whether its logits are stored for the run's log-probabilities.
        """
        layers = self._model.decoder.config.num_layers
        at, run = node.position if position is None else position, layers if depth is None else depth
        return ViewedForward(account, self, tree, node, view, run, at, keep_raw_logits)

    def advance(self, requests: Sequence[ViewedForward]) -> Served | None:
        """Does a pass for the requests of each depth; those whose share is above their budget are refused."""
        due = list(requests)
        while due:
            rows = [Row(request, self._model.cache) for request in due]
            costs = self._costs(rows)
            self._model.holdings.add_to(costs)
            over = {account: cap for account, cost in costs.items() if (cap := account.first_over(cost))}
            if not over:
                return self._run(rows, costs)
            for request in due:
                if request.account in over:
                    request.refuse(over[request.account])
            due = [request for request in due if not request.done]
        return None

    def _run(self, rows: Sequence[Row], costs: dict[Account, Ledger]) -> Served | None:
        started = time.perf_counter()
        layers = self._model.decoder.config.num_layers
        for depth in sorted({row.depth for row in rows}):
            group = [row for row in rows if row.depth == depth]
            try:
                outputs = forward(self._model.decoder, self._model.cache, group, depth)
            except (RuntimeError, MemoryError) as error:
                for row in rows:
                    if not row.request.done:
                        row.request.fail(FailureError(f"a pass of {self._model.model.name} failed: {error}"))
                return None
            for row, output in zip(group, outputs, strict=True):
                row.request.node.computed |= depth == layers
                if row.request.keep_raw_logits:
                    row.request.raw_logits[row.request.node] = output.logits
                row.request.finish(output)
        self._passes += 1
        for account, cost in costs.items():
            account.charge(cost)
            self.ledger += cost
        self._model.holdings.settle(costs)
        computed: dict[Account, list[Node]] = {account: [] for account in costs}
        for row in rows:
            if row.depth == layers:
                computed[row.request.account].append(row.request.node)
        elapsed = time.perf_counter() - started
        return Served(PassReport(self._passes, len(rows), len(costs), elapsed, self._model.cache.bytes()), computed)

    def _costs(self, rows: Sequence[Row]) -> dict[Account, Ledger]:
        """Returns what the passes cost each account: weights are split by rows, each row reads its own keys."""
        decoder, cache, layers = self._model.decoder, self._model.cache, self._model.decoder.config.num_layers
        config, costs = decoder.config, {row.request.account: Ledger() for row in rows}
        head_bytes = decoder.lm_head.nbytes
        per_layer = cache.bytes_per_slot // max(1, layers)
        for depth in {row.depth for row in rows}:
            group = [row for row in rows if row.depth == depth]
            accounts = [row.request.account for row in group]
            body = (decoder.pass_weight_bytes(len(group)) - head_bytes) * depth // max(1, layers)
            for account, part in split_evenly(body + head_bytes, accounts).items():
                costs[account].weight_bytes += part
            for row in group:
                cost, keys = costs[row.request.account], depth * len(row.slots)
                products = decoder.linear_flops(1, 0) * depth // max(1, layers) + decoder.linear_flops(0, 1)
                cost.flops += products + 4 * config.num_heads * config.head_dim * keys
                cost.kv_bytes += keys * per_layer
                if depth == layers:
                    setattr(cost, f"{self.role}_passes", getattr(cost, f"{self.role}_passes") + 1)
                    setattr(cost, f"{self.role}_tokens", getattr(cost, f"{self.role}_tokens") + 1)
                else:
                    share = {HEAD_PRODUCTS: 1.0} if depth == 0 else {PARTIAL_PASSES: depth / layers}
                    cost.extras = {
                        name: cost.extras.get(name, 0) + share.get(name, 0) for name in {*cost.extras, *share}
                    }
        for cost in costs.values():
            cost.ran_on = (decoder.runs_on,)
        return costs


class Row:
    """A request with the slots that it reads."""

    def __init__(self, request: ViewedForward, cache: Cache) -> None:
        self.request, self.depth = request, request.depth
        path = path_slots(request.tree, request.node)
        self.keys = len(path)
        reads, slots = request.view.reads, path.to(cache.device)
        self.reads: slice | Tensor = slice(None) if reads is None else reads.to(cache.device)
        self.slots = slots[self.reads] if self.depth else path[:0]
        self._cache = cache
        weights = request.view.log_weights
        self.log_weights = None if weights is None else weights.to(cache.device)[:, self.reads]

    def reads_at(self, window: int | None) -> Tensor | None:
        """Returns which of `slots` a layer with this sliding window shows, bool [r]; None: all."""
        if window is None:
            return None
        positions = torch.from_numpy(self._cache.positions[self.slots.cpu().numpy()]).to(self.slots.device)
        return positions > self.request.position - window


def path_slots(tree: Tree, node: Node) -> Tensor:
    """Returns the slots of the keys on a tree's path to a node, its own the last, int64 [keys]."""
    slots: list[int] = []
    above = tree.tentative_path(node)
    end = node if not above else above[-1].parent
    reach = -1 if end is None else end.position
    for span in tree.spans:
        count = min(span.count, reach + 1 - span.base)
        if count > 0:
            slots += range(span.start, span.start + count) if span.slots is None else span.slots[:count]
    return torch.tensor([*slots, *(each.slot for each in reversed(above))])


@torch.inference_mode()
def forward(decoder: Decoder, cache: Cache, rows: Sequence[Row], depth: int) -> list[ViewedOutput]:
    """Runs the first `depth` layers, the final norm and the LM head over a row each of some requests.

    Args:
        decoder: The model.
        cache: Its keys and values; those of the rows are written by each layer that is run.
        rows: The rows.
        depth: Layers that are run.
    """
    device = decoder.device
    tokens = torch.tensor([row.request.node.token for row in rows], device=device)
    positions = torch.tensor([row.request.position for row in rows], device=device)
    own = torch.tensor([row.request.node.slot for row in rows], device=device)
    found = [torch.zeros((depth, row.keys), device=device) for row in rows]
    x, rotations = decoder.inputs(tokens, positions), decoder.rotations(positions) if depth else []
    for layer in range(depth):
        q, k, v = decoder.before_attention(layer, x, rotations)
        cache.write(layer, own, k, v)
        attended = torch.empty_like(q)
        for place, row in enumerate(rows):
            attended[place], seen = attend(decoder, cache, layer, q[place], row)
            found[place][layer, row.reads] = seen
        x = decoder.after_attention(layer, x, attended)
    if depth == decoder.config.num_layers and cache.hidden_states is not None:
        cache.hidden_states[own] = decoder.hidden_states(x).float()
        for row in rows:
            row.request.node.has_state = True
    return [ViewedOutput(logits, seen) for logits, seen in zip(decoder.logits(x), found, strict=True)]


def attend(decoder: Decoder, cache: Cache, layer: int, q: Tensor, row: Row) -> tuple[Tensor, Tensor]:
    """Returns what one row reads of a layer, and the mean over heads of its weights.

    Args:
        decoder: The model.
        cache: Its keys and values.
        layer: The layer.
        q: The row's queries, [num_heads, head_dim].
        row: The row, with its view.

    Returns:
        The output [num_heads, head_dim], and float32 [r], a weight for each key that the row reads.
    """
    config = decoder.config
    keys, values = cache.read(layer, row.slots, q.dtype)
    grouped = q.view(config.num_kv_heads, -1, q.shape[-1])
    scores = torch.matmul(grouped, keys.transpose(1, 2)).float() * config.attention_scale
    if config.attention_softcap is not None:
        scores = torch.tanh(scores / config.attention_softcap) * config.attention_softcap
    if row.log_weights is not None:
        scores = scores + row.log_weights[layer]
    shown = row.reads_at(config.windows[layer])
    if shown is not None:
        scores = scores.masked_fill(~shown, -torch.inf)
    weights = scores.softmax(-1)
    out = torch.matmul(weights.to(values.dtype), values).view(q.shape)
    sinks = decoder.sinks[layer] if decoder.sinks else None
    if sinks is not None:
        lse = scores.logsumexp(-1).view(-1)
        out, share = beside_sinks(out[None], lse[None], sinks)[0], torch.sigmoid(lse - sinks)
        weights = weights * share.view(config.num_kv_heads, -1, 1)
    return out, weights.flatten(0, 1).mean(0)
