"""What a pass costs each run that shares it, to the byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from outlay.budget import Account, Ledger
from outlay.models.decoder import Decoder
from outlay.tree.cache import Cache
from outlay.tree.plan import PassPlan
from outlay.tree.stored import Segment


class PassRows(NamedTuple):
    """The rows of a pass."""

    order: Sequence[Hashable]
    """What each row computes, [n]."""
    accounts: Sequence[Account]
    """Who pays for each row, [n]."""
    wanted: Collection[Hashable]
    """Those whose logits are computed."""


class PassCost:
    """Splits the cost of a model's passes among accounts.

    `role` names the ledger's entries, `ran_on` the code; `memory` is the cache of memories, where rows read any.
    """

    def __init__(self, decoder: Decoder, cache: Cache, role: str, ran_on: str, memory: Cache | None = None) -> None:
        self._decoder, self._cache, self._role, self._ran_on = decoder, cache, role, (ran_on,)
        self._memory_slot = 0 if memory is None else memory.bytes_per_slot // memory.config.num_layers
        self._layers = Counter(decoder.config.windows)  # how many layers have each attention window

    def split(self, rows: PassRows, plan: PassPlan) -> dict[Account, Ledger]:
        """Returns what a pass costs each account.

        What several runs read together, weights and shared keys and values, is split by rows.

        Args:
            rows: The rows of the pass, with their accounts.
            plan: The plan of the pass.
        """
        order, accounts, wanted = rows
        per_slot = self._cache.bytes_per_slot // max(1, self._cache.config.num_layers)
        weight = self._decoder.pass_weight_bytes(len(order))
        read = [
            (piece, count * piece.length * per_slot)
            for window, count in self._layers.items()
            for piece in plan.kv_spans[window]
        ]
        if plan.memory_spans:
            layers, memory_slot = self._decoder.config.num_layers, self._memory_slot
            read += [(piece, layers * piece.length * memory_slot) for piece in plan.memory_spans]
        stored = [(span, span.segment.bytes) for span in plan.stored]
        keys = self._keys(plan)
        if len({*accounts}) == 1:
            kv = sum(kv for _, kv in read) + sum(kv for _, kv in stored)
            return {accounts[0]: self._ledger(order, keys, wanted, weight, kv)}

        weights = split_evenly(weight, accounts)
        kv_bytes = dict.fromkeys(weights, 0)
        readers = [(piece.rows, kv) for piece, kv in read] + [(span.rows, kv) for span, kv in stored]
        for those, kv in readers:
            for account, part in split_evenly(kv, [accounts[row] for row in those]).items():
                kv_bytes[account] += part
        own: dict[Account, tuple[list[Hashable], list[int]]] = {account: ([], []) for account in weights}
        for account, row, seen in zip(accounts, order, keys, strict=True):
            own[account][0].append(row)
            own[account][1].append(seen)
        return {account: self._ledger(*own[account], wanted, weights[account], kv_bytes[account]) for account in own}

    def _keys(self, plan: PassPlan) -> list[int]:
        """Returns how many keys each row attends to, over all layers, those of its memory included."""
        keys = [
            sum(count * (min(seen, window) if window else seen) for window, count in self._layers.items())
            for seen in plan.keys_seen
        ]
        for span in plan.memory_spans:
            for row in span.rows:
                keys[row] += self._decoder.config.num_layers * span.length
        self._count_stored(plan, keys)
        return keys

    def _count_stored(self, plan: PassPlan, keys: list[int]) -> None:
        """Counts, for rows that read what policies hold, the keys in slots and the stored ones of each layer.

        Where a layer has a window, stored keys count as if those that it sees were all held.
        """
        segments: dict[int, list[Segment]] = {}
        for span in plan.stored:
            for row in span.rows:
                segments.setdefault(row, []).append(span.segment)
        for row, held in segments.items():
            tail = plan.positions[row] + 1 - max(segment.end for segment in held)
            keys[row] = 0
            for layer, window in enumerate(self._decoder.config.windows):
                stored = sum(segment.length(layer) for segment in held)
                keys[row] += min(tail + stored, window or tail + stored)

    def _ledger(
        self, nodes: Sequence[Hashable], keys: Sequence[int], wanted: Collection[Hashable], weight: int, kv: int
    ) -> Ledger:
        """Returns the cost of some rows, each attending to `keys` keys over all layers."""
        config = self._decoder.config
        heads = sum(node in wanted for node in nodes)
        passes: dict[str, Any] = {f"{self._role}_passes": 1, f"{self._role}_tokens": len(nodes)}
        return Ledger(
            flops=self._decoder.linear_flops(len(nodes), heads) + 4 * config.num_heads * config.head_dim * sum(keys),
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
