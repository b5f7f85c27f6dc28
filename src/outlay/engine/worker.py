"""A model at work: it gathers what all runs ask of it and serves it in one forward pass a tick."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import Any, Literal, get_args

import torch

from outlay.budget import Account, Ledger
from outlay.engine.accounting import PassCost
from outlay.engine.forward import Forward, wanted_by
from outlay.engine.passes import pass_for
from outlay.engine.request import PassReport, Served, Worker
from outlay.engine.schedule import Schedule, Share, group_by_tree
from outlay.errors import CacheFull, FailureError
from outlay.models.load import Model
from outlay.tree.cache import Cache
from outlay.tree.plan import PassPlan, plan_pass
from outlay.tree.prefix import PrefixCache
from outlay.tree.token_tree import NO_TOKEN, Node, Tree

Role = Literal["target", "draft", "score", "side"]
"""What a model is to a run, and the ledger's entries that it fills: the one that writes, one that drafts for it, one
that rates texts, any other."""
ROLES: tuple[Role, ...] = get_args(Role)


SOME_TEXT = 128  # tokens of text that must fit into the cache for a run to begin beside others


class ModelWorker(Worker):
    """Holds one model's KV cache and serves `Forward` requests, all of a tick's in one pass.

    `ledger` sums what the worker did; it equals the sum of the ledgers of the runs that it worked for. `passes` counts
    physical passes, in which several runs take part, and `last` is the last of them. `seated` is how many runs have a
    seat here at present; `promised` tokens of cache are left to them when another one begins. `shared_state` is what
    runs share from one to the next.
    """

    def __init__(
        self,
        model: Model,
        *,
        role: Role,
        cache_tokens: int | None = None,
        prefix_cache: bool = True,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        decoder = model.decoder
        self.model, self.decoder, self.role = model, decoder, role
        self.stage = "draft" if role == "draft" else "pass"
        limit = cache_tokens or max(decoder.config.max_positions, 16384)
        self.cache = Cache(decoder.config, kv_dtype or decoder.dtype, decoder.device, limit=limit)
        self.prefixes = PrefixCache() if prefix_cache else None
        if self.prefixes is not None:
            self.cache.reclaim = self.prefixes.evict
        self._schedule = Schedule()
        self._pass = pass_for(decoder, self.cache)
        # A draft head reads more tokens than it writes.
        self._vocab = decoder.embed.table.shape[0] if decoder.reads_hidden_states else decoder.config.vocab_size
        self._cost = PassCost(decoder, self.cache, role, self._pass.name)
        self.shared_state: dict[Hashable, Any] = {}
        self.last = PassReport(0, 0, 0, 0.0, 0)
        self.seated = 0
        self.promised = 0
        self.ledger = Ledger()
        self.pass_seconds = 0.0

    @property
    def passes(self) -> int:
        """How many physical passes there were."""
        return self.last.number

    def keep_hidden_states(self) -> None:
        """Has the cache keep what the head reads, for drafts that start from it: see `Seat.hidden_states`."""
        self.cache.keep_hidden_states()

    def plant(self, prompt: Sequence[int], reserve: int) -> tuple[Tree, int]:
        """Returns a tree that holds the prompt, and how many of its tokens are shared, being in the cache already.

        The prompt's last token is always the tree's own, because its logits are wanted. Beside other runs it needs room
        for some text as well.

        Args:
            prompt: Token ids.
            reserve: Tokens of text for which the cache makes room at once.

        Raises:
            CacheFull: When the cache has no room for it at present.
        """
        known = self.prefixes.match(prompt[:-1]) if self.prefixes is not None else None
        shared = known.position + 1 if known else 0
        tree = Tree(self.cache, after=known, reserve=len(prompt) - shared + reserve)
        needed = len(prompt) - shared + (min(reserve, SOME_TEXT) + self.promised if self.seated else 1)
        try:
            while not self.cache.has_room(needed):
                if self.cache.rescue is None or not self.cache.rescue():
                    raise CacheFull(f"{self.model.name} has no room for {needed} more tokens in its cache")
            tree.append(prompt[shared:])
        except FailureError:
            tree.release()
            raise
        assert tree.tip is not None
        self.remember(tree.tip)
        return tree, shared

    def remember(self, node: Node) -> None:
        """Keeps the path to `node` for requests to come."""
        if self.prefixes is not None:
            self.prefixes.insert(node.path())

    def advance(self, requests: Sequence[Forward]) -> Served | None:
        """Does one pass for these requests and finishes those whose rows are all computed.

        Requests whose share of the pass is above their budget are refused, and the pass is planned without them.
        """
        for forward in requests:
            if forward.begun:
                forward.update_pending()
            else:
                self._begin(forward)
        while shares := self._schedule.pick([forward for forward in requests if not forward.done]):
            groups = group_by_tree(shares)
            plan = plan_pass(groups, self.cache.positions, self.decoder.config.windows)
            order = [node for _, nodes in groups for node in nodes]
            costs = self._cost.split(shares, plan, order)
            over = {account: cap for account, cost in costs.items() if (cap := account.first_over(cost))}
            if not over:
                return self._run_pass(shares, plan, order, costs)
            for forward in requests:
                if forward.account in over:
                    forward.refuse(over[forward.account])
        return None

    def _begin(self, forward: Forward) -> None:
        """Finds out what a request computes; fails it where that can't be computed, so that no other fails with it."""
        if any(forward.tree_of(node) is None for node in forward.nodes):
            forward.fail(ValueError("a pass is asked over a node that no tree of the run holds any more"))
            return
        forward.update_pending()
        reach, vocab = self.decoder.config.max_positions, self._vocab
        for node in forward.pending:
            if node.position >= reach:
                forward.fail(FailureError(f"{self.model.name} reads at most {reach} tokens of a text"))
                return
            if not NO_TOKEN <= node.token < vocab:
                forward.fail(ValueError(f"token {node.token} is not among the {vocab} that {self.model.name} reads"))
                return

    def _run_pass(
        self, shares: Sequence[Share], plan: PassPlan, order: list[Node], costs: dict[Account, Ledger]
    ) -> Served | None:
        started = time.perf_counter()
        wanted = {node for forward, _ in shares for node in forward.nodes}
        heads = [row for row, node in enumerate(order) if node in wanted]
        try:
            output = self._pass(
                plan, heads, wanted_by([forward for forward, _ in shares], [order[row] for row in heads])
            )
        except (RuntimeError, MemoryError) as error:
            for forward, _ in shares:
                forward.fail(FailureError(f"a pass of {self.model.name} over {len(order)} tokens failed: {error}"))
            return None
        elapsed = time.perf_counter() - started
        self.pass_seconds += elapsed
        self._schedule.observe(shares, elapsed)
        self.last = PassReport(self.passes + 1, len(order), len(costs), elapsed, self.cache.bytes())
        for account, cost in costs.items():
            account.charge(cost)
            self.ledger += cost
        keeps_states = self.cache.hidden_states is not None
        for node in order:
            node.computed = True
            node.has_state = keeps_states

        places = {order[row]: index for index, row in enumerate(heads)}
        computed: dict[Account, list[Node]] = {account: [] for account in costs}
        for forward, nodes in shares:
            forward.settle(nodes, output, places)
            computed[forward.account] += nodes
        return Served(self.last, computed)
