"""What a pass costs each run that shares it, to the byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from outlay.budget import Account, Ledger
from outlay.engine.schedule import Share
from outlay.models.decoder import Decoder
from outlay.tree.cache import Cache
from outlay.tree.plan import PassPlan
from outlay.tree.token_tree import Node


class PassCost:
    """Splits the cost of a model's passes among accounts. `role` names the ledger's entries, `ran_on` the code."""

    def __init__(self, decoder: Decoder, cache: Cache, role: str, ran_on: str) -> None:
        self._decoder, self._cache, self._role, self._ran_on = decoder, cache, role, (ran_on,)
        self._layers = Counter(decoder.config.windows)  # how many layers have each attention window

    def split(self, shares: Sequence[Share], plan: PassPlan, order: Sequence[Node]) -> dict[Account, Ledger]:
        """Returns what a pass costs each account.

        What several runs read together, weights and shared keys and values, is split by rows.

        Args:
            shares: The requests of the pass, each with its nodes.
            plan: The plan of the pass.
            order: The nodes of the pass, a row each.
        """
        wanted = {node for forward, _ in shares for node in forward.nodes}
        per_slot = self._cache.bytes_per_slot // max(1, self._decoder.config.num_layers)
        weight = self._decoder.pass_weight_bytes(len(order))
        read = [
            (piece, count * piece.length * per_slot)
            for window, count in self._layers.items()
            for piece in plan.kv_spans[window]
        ]
        if len({forward.account for forward, _ in shares}) == 1:
            kv = sum(kv for _, kv in read)
            return {shares[0][0].account: self._ledger(order, plan.keys_seen, wanted, weight, kv)}

        owner = {node: forward.account for forward, nodes in shares for node in nodes}
        accounts = [owner[node] for node in order]
        weights = split_evenly(weight, accounts)
        kv_bytes = dict.fromkeys(weights, 0)
        for piece, kv in read:
            for account, part in split_evenly(kv, [accounts[row] for row in piece.rows]).items():
                kv_bytes[account] += part
        own: dict[Account, tuple[list[Node], list[int]]] = {account: ([], []) for account in weights}
        for account, node, seen in zip(accounts, order, plan.keys_seen, strict=True):
            own[account][0].append(node)
            own[account][1].append(seen)
        return {account: self._ledger(*own[account], wanted, weights[account], kv_bytes[account]) for account in own}

    def _ledger(
        self, nodes: Sequence[Node], keys_seen: Sequence[int], wanted: set[Node], weight: int, kv: int
    ) -> Ledger:
        """Returns the cost of some rows, each of which attends to `keys_seen` keys."""
        config = self._decoder.config
        keys = sum(
            count * (sum(min(seen, window) for seen in keys_seen) if window else sum(keys_seen))
            for window, count in self._layers.items()
        )
        heads = sum(node in wanted for node in nodes)
        passes: dict[str, Any] = {f"{self._role}_passes": 1, f"{self._role}_tokens": len(nodes)}
        return Ledger(
            flops=self._decoder.linear_flops(len(nodes), heads) + 4 * config.num_heads * config.head_dim * keys,
            weight_bytes=weight,
            kv_bytes=kv,
            ran_on=self._ran_on,
            **passes,
        )


def split_evenly(total: int, readers: Sequence[Account]) -> dict[Account, int]:
    """Splits an integer equally among `readers`, who may appear more than once; the parts add up to it exactly."""
    parts: dict[Account, int] = {}
    seen = given = 0
    for account, side_by_side in groupby(readers):
        seen += sum(1 for _ in side_by_side)
        share = total * seen // len(readers) - given
        parts[account] = parts.get(account, 0) + share
        given += share
    return parts
