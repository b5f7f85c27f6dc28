"""A model at work: gathers what all runs ask of it, does one pass a tick, and books the cost where it belongs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from outlay.budget import Ledger
from outlay.engine.method import Forward, Request
from outlay.engine.passes import LogitsWanted, PassOutput, join, pass_for
from outlay.engine.run import Run
from outlay.errors import FailureError
from outlay.kernels import Top
from outlay.models.load import Model
from outlay.tree.cache import Cache
from outlay.tree.plan import PassPlan, plan_pass
from outlay.tree.prefix import PrefixCache
from outlay.tree.token_tree import Node, Tree

CHUNK = 256  # rows of prefill in one pass: long enough to be efficient, short enough not to stall the others
ALONE = 512  # where there are none to be stalled
DECODE = 64  # requests of up to this many rows are never cut


class PassShape(NamedTuple):
    """A pass: its rows, the runs that took part, and its seconds."""

    rows: int
    runs: int
    seconds: float


class ModelWorker:
    """Holds one model's cache and serves `Forward` requests, all of a tick's in one pass.

    `ledger` sums what the worker did; it equals the sum of the ledgers of the runs that it worked for. `passes` counts
    physical passes, in which several runs take part, and `last` is the last of them. `seated` is how many runs
    there are at present. `kept` is what methods keep from one run to the next.
    """

    def __init__(
        self,
        model: Model,
        *,
        role: str,
        cache_tokens: int | None = None,
        prefix_cache: bool = True,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        decoder = model.decoder
        self.model, self.decoder, self.role = model, decoder, role
        limit = cache_tokens or max(decoder.config.max_positions, 16384)
        self.cache = Cache(decoder.config, kv_dtype or decoder.dtype, decoder.device, limit=limit)
        self.prefixes = PrefixCache() if prefix_cache else None
        if self.prefixes is not None:
            self.cache.reclaim = self.prefixes.evict
        self._pass = pass_for(decoder, self.cache)
        self._ran_on = (self._pass.name,)
        self.kept: dict[Hashable, Any] = {}
        self.last = PassShape(0, 0, 0.0)
        self.seated = 0
        self.ledger = Ledger()
        self.passes = 0
        self.pass_seconds = 0.0
        self._layers = Counter(decoder.config.windows)

    def keep_hidden_states(self) -> None:
        """Has the cache keep what the head reads, for drafts that start from it: see `Seat.hidden_states`."""
        self.cache.keep_hidden_states()

    def plant(self, prompt: Sequence[int], reserve: int) -> tuple[Tree, Node]:
        """Returns a tree that holds the prompt, and its last node; what is already in the cache is shared.

        The last token is always the tree's own, because its logits are wanted. Raises `FailureError` when it doesn't
        fit.
        """
        known = self.prefixes.match(prompt[:-1]) if self.prefixes is not None else None
        shared = known.position + 1 if known else 0
        tree = Tree(self.cache, after=known, reserve=len(prompt) - shared + reserve)
        try:
            tree.append(prompt[shared:])
        except FailureError:
            tree.release()
            raise
        assert tree.tip is not None
        self.remember(tree.tip)
        return tree, tree.tip

    def remember(self, node: Node) -> None:
        """Keeps the path to `node` for requests to come."""
        if self.prefixes is not None:
            self.prefixes.insert(node.path())

    def advance(self, requests: Sequence[Request]) -> None:
        """Does one pass for these `Forward` requests and finishes those whose rows are all computed."""
        forwards = [request for request in requests if isinstance(request, Forward)]
        for forward in forwards:
            if not forward.pending and not forward.rows:
                forward.pending = _pending(forward.nodes)
            elif forward.pending and forward.pending[0].computed:  # by another run, while this one waited for room
                forward.pending = _still_pending(forward)
        while chosen := self._choose([forward for forward in forwards if forward.run.finish_reason is None]):
            groups = _by_tree(chosen)
            plan = plan_pass(groups, self.cache.positions, self.decoder.config.windows)
            order = [node for _, nodes in groups for node in nodes]
            costs = self._costs(chosen, plan, order)
            over = [run for run, cost in costs.items() if not run.options.budget.allows(run.ledger, cost)]
            if not over:
                self._run_pass(chosen, plan, order, costs)
                return
            for run in over:
                run.finish("budget")

    def _choose(self, forwards: Sequence[Forward]) -> list[tuple[Forward, list[Node]]]:
        """Picks this tick's rows: first the short requests, whole, then chunks of the long ones, first come first
        served.
        """
        taken: set[Node] = set()
        chosen = []
        room = CHUNK if any(0 < len(forward.pending) <= DECODE for forward in forwards) else ALONE
        for forward in sorted(forwards, key=lambda forward: len(forward.pending) > DECODE):
            limit = len(forward.pending) if len(forward.pending) <= DECODE else max(room, 0)
            if not limit:
                continue
            rows = [node for node in forward.pending if node not in taken][:limit]
            if len(rows) < len(forward.pending):  # what another run computes in this pass may lie above our own rows
                rows = _reachable(rows, taken)
            room -= len(rows)
            taken.update(rows)
            chosen.append((forward, rows))
        return [(forward, rows) for forward, rows in chosen if rows]

    def _run_pass(
        self, chosen: list[tuple[Forward, list[Node]]], plan: PassPlan, order: list[Node], costs: dict[Run, Ledger]
    ) -> None:
        started = time.perf_counter()
        wanted = {node for forward, _ in chosen for node in forward.nodes}
        heads = [row for row, node in enumerate(order) if node in wanted]
        try:
            output = self._pass(plan, heads, _want([forward for forward, _ in chosen], [order[row] for row in heads]))
        except (RuntimeError, MemoryError) as error:
            for forward, _ in chosen:
                forward.error = FailureError(f"a pass of {self.model.name} over {len(order)} tokens failed: {error}")
                forward.done = True
            return
        self.passes += 1
        elapsed = time.perf_counter() - started
        self.last = PassShape(len(order), len(costs), elapsed)
        self.pass_seconds += elapsed
        for run, cost in costs.items():
            run.ledger += cost
            self.ledger += cost
        for node in order:
            node.computed = True
        places = {order[row]: index for index, row in enumerate(heads)}
        for forward, nodes in chosen:
            _settle(forward, nodes, output, places)
        for run in costs:
            if run.trace is not None:
                mine = [node for forward, nodes in chosen if forward.run is run for node in nodes]
                run.trace.passed(self.role, self.passes, mine, len(order), len(costs), elapsed, self.cache.bytes())

    def _costs(self, chosen: list[tuple[Forward, list[Node]]], plan: PassPlan, order: list[Node]) -> dict[Run, Ledger]:
        """Returns what this pass costs each run. What runs read together is split by rows, to the byte."""
        wanted = {node for forward, _ in chosen for node in forward.nodes}
        per_slot = self.cache.bytes_per_slot // max(1, self.decoder.config.num_layers)
        weight = self.decoder.pass_weight_bytes(len(order))
        read = [
            (piece, count * piece.length * per_slot) for w, count in self._layers.items() for piece in plan.kv_spans[w]
        ]
        if len({forward.run for forward, _ in chosen}) == 1:
            return {chosen[0][0].run: self._cost(order, plan.keys_seen, wanted, weight, sum(kv for _, kv in read))}
        owner = {node: forward.run for forward, nodes in chosen for node in nodes}
        runs = [owner[node] for node in order]
        weights = _split(weight, runs)
        shares = dict.fromkeys(weights, 0)
        for piece, kv in read:
            for run, share in _split(kv, [runs[row] for row in piece.rows]).items():
                shares[run] += share
        own: dict[Run, tuple[list[Node], list[int]]] = {run: ([], []) for run in weights}
        for run, node, seen in zip(runs, order, plan.keys_seen, strict=True):
            own[run][0].append(node)
            own[run][1].append(seen)
        return {run: self._cost(*own[run], wanted, weights[run], shares[run]) for run in own}

    def _cost(self, nodes: list[Node], seen: list[int], wanted: set[Node], weight: int, kv: int) -> Ledger:
        """Returns the cost of some rows, of which each sees so many keys."""
        config = self.decoder.config
        keys = sum(
            count * (sum(min(keys, w) for keys in seen) if w else sum(seen)) for w, count in self._layers.items()
        )
        heads = sum(node in wanted for node in nodes)
        own: dict[str, Any] = {f"{self.role}_passes": 1, f"{self.role}_tokens": len(nodes)}
        return Ledger(
            flops=self.decoder.linear_flops(len(nodes), heads) + 4 * config.num_heads * config.head_dim * keys,
            weight_bytes=weight,
            kv_bytes=kv,
            ran_on=self._ran_on,
            **own,
        )


def _want(forwards: Sequence[Forward], heads: Sequence[Node]) -> LogitsWanted:
    """Returns what all of these requests need of the head's rows, together."""
    logits = any(not (forward.top or forward.named) or forward.run.options.logprobs is not None for forward in forwards)
    named: dict[Node, list[int]] = {}
    for forward in forwards:
        for node, tokens in zip(forward.nodes, forward.named, strict=False):
            named.setdefault(node, []).extend(tokens)
    return LogitsWanted(
        logits,
        max(forward.top for forward in forwards),
        any(forward.lse for forward in forwards),
        [named.get(node, ()) for node in heads] if named else (),
    )


def _settle(forward: Forward, nodes: list[Node], output: PassOutput, places: dict[Node, int]) -> None:
    """Hands a request its rows of a pass that computed `nodes` for it, and finishes it when it has all."""
    if output.logits is not None and forward.run.options.logprobs is not None:
        for node in {*nodes} & {*forward.nodes}:
            forward.run.remember(node, output.logits[places[node]])
    if not forward.rows and len(nodes) == len(forward.pending):  # one pass computes all of it
        rows = [(output, places[node]) for node in forward.nodes]
    else:
        asked = set(forward.nodes)
        forward.rows.update((node, (output, places[node])) for node in nodes if node in asked)
        forward.pending = _still_pending(forward)
        if forward.pending:
            return
        rows = [forward.rows[node] for node in forward.nodes]
    forward.result = [each.named[row] for each, row in rows] if forward.named else _gather(rows, forward.top)
    forward.done = True


def _gather(rows: Sequence[tuple[PassOutput, int]], top: int) -> Tensor | Top:
    """Returns rows of one or several passes as one; without a copy where they lie side by side."""
    first, begin = rows[0]
    if all(output is first and place == begin + index for index, (output, place) in enumerate(rows)):
        return first.rows(begin, begin + len(rows), top)
    return join([output.rows(place, place + 1, top) for output, place in rows])


def _pending(nodes: Sequence[Node]) -> list[Node]:
    """Returns the nodes to compute, each after those above it: `nodes` and what above them is not computed yet."""
    pending: dict[Node, None] = {}
    for node in nodes:
        above, walk = [], node.parent
        while walk is not None and not walk.computed and walk not in pending:
            above.append(walk)
            walk = walk.parent
        pending.update(dict.fromkeys(reversed(above)))
        pending[node] = None
    return list(pending)


def _still_pending(forward: Forward) -> list[Node]:
    """Returns the nodes that are pending and were not computed meanwhile, or whose row is asked for and missing."""
    asked = set(forward.nodes)
    return [node for node in forward.pending if not node.computed or (node in asked and node not in forward.rows)]


def _reachable(rows: list[Node], taken: set[Node]) -> list[Node]:
    """Returns the rows whose path above is computed or part of this pass."""
    here = set(taken)
    reachable = []
    for node in rows:
        if node.parent is None or node.parent.computed or node.parent in here:
            here.add(node)
            reachable.append(node)
    return reachable


def _by_tree(chosen: Sequence[tuple[Forward, list[Node]]]) -> list[tuple[Tree, list[Node]]]:
    """Groups the rows by the tree whose view of the cache they are computed under."""
    groups: dict[Tree, list[Node]] = {}
    for forward, nodes in chosen:
        for node in nodes:
            tree = node.tree
            if not tree.sees(node):  # it may have given the node up, and a fork of it hold it still
                tree = next(asked.tree for asked in forward.nodes if asked.tree.sees(node))
            groups.setdefault(tree, []).append(node)
    return list(groups.items())


def _split(total: int, readers: Sequence[Run]) -> dict[Run, int]:
    """Splits an integer equally among `readers`, who may appear more than once, so that the parts add up to it
    exactly.
    """
    parts: dict[Run, int] = {}
    seen = given = 0
    for run, side_by_side in groupby(readers):
        seen += sum(1 for _ in side_by_side)
        share = total * seen // len(readers) - given
        parts[run] = parts.get(run, 0) + share
        given += share
    return parts
