"""What each run holds in a model's KV cache: its slots, where those that several runs hold are split to the byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from weakref import WeakKeyDictionary

from outlay.budget import Account, Ledger
from outlay.engine.accounting import split_evenly
from outlay.tree.cache import Cache
from outlay.tree.canvas import Canvas
from outlay.tree.memory import Memories, Memory
from outlay.tree.token_tree import Tree

Stretch = tuple[int, int]  # slots [begin, end)


class Holdings:
    """What the runs that have a seat at a model hold there, and the most that each of them ever held."""

    def __init__(self, cache: Cache, memories: Memories | None) -> None:
        """Begins without a seat.

        Args:
            cache: The model's KV cache.
            memories: What its encoder read, if it has one.
        """
        self._cache, self._memories = cache, memories
        self._seats: list[tuple[Account, list[Tree], list[Canvas]]] = []
        self._most: WeakKeyDictionary[Account, int] = WeakKeyDictionary()

    @property
    def seats(self) -> int:
        """How many seats there are at present."""
        return len(self._seats)

    def open(self, account: Account, trees: list[Tree], canvases: list[Canvas]) -> None:
        """Counts from now on what is in these lists, which grow and shrink, as held by an account."""
        self._seats.append((account, trees, canvases))

    def close(self, account: Account, trees: list[Tree], canvases: list[Canvas]) -> None:
        """Counts it no more."""
        self._seats.remove((account, trees, canvases))

    def add_to(self, costs: Mapping[Account, Ledger]) -> None:
        """Adds to what a pass costs each run the bytes by which it holds more than it ever did here."""
        trees: dict[Account, list[Tree]] = {}
        cells: dict[Account, int] = {}
        for account, own, canvases in self._seats:
            cells[account] = cells.get(account, 0) + sum(map(len, canvases))
            own[1:] = [tree for tree in own[1:] if tree.tip is not None]  # one that was released holds nothing
            trees.setdefault(account, []).extend(own)
        held = held_bytes(trees, self._cache.bytes_per_slot)
        memories = self._memory_bytes()
        for account, cost in costs.items():
            alone = cells.get(account, 0) * self._cache.bytes_per_slot  # nobody shares a canvas
            segments = {s for tree in trees.get(account, ()) if tree.stored is not None for s in tree.stored.segments}
            alone += sum(segment.bytes for segment in segments)  # nor what a policy holds
            total = held.get(account, 0) + alone + memories.get(account, 0)
            cost.kv_held = max(0, total - self._most.get(account, 0))

    def settle(self, costs: Mapping[Account, Ledger]) -> None:
        """Takes in what a pass that was done has added to the bytes that runs held at most."""
        for account, cost in costs.items():
            self._most[account] = self._most.get(account, 0) + cost.kv_held

    def _memory_bytes(self) -> dict[Account, int]:
        """Returns the bytes of memories that each account holds; those that several hold are split evenly."""
        if self._memories is None:
            return {}
        readers: dict[Memory, dict[Account, None]] = {}
        for account, trees, _ in self._seats:
            if trees and (memory := trees[0].memory) is not None:
                readers.setdefault(memory, {})[account] = None
        held: dict[Account, int] = {}
        for memory, accounts in readers.items():
            total = len(memory) * self._memories.cache.bytes_per_slot
            for account, part in split_evenly(total, list(accounts)).items():
                held[account] = held.get(account, 0) + part
        return held


def held_bytes(trees: Mapping[Account, Sequence[Tree]], bytes_per_slot: int) -> dict[Account, int]:
    """Returns the bytes of keys and values that each account's trees hold.

    A slot counts once for an account however many of its trees hold it, and its bytes are split evenly among the
    accounts that do: together they hold what the cache holds for them.

    Args:
        trees: The trees of each account.
        bytes_per_slot: Bytes of keys and values that one token holds.
    """
    accounts = list(trees)
    if len(accounts) == 1 and len(trees[accounts[0]]) == 1:
        (tree,) = trees[accounts[0]]
        return {accounts[0]: bytes_per_slot * _tokens(tree)}  # stored tokens have no slots
    slots: dict[int, int] = {}  # by the accounts that hold them, a bit each
    borders = sorted(
        (place, 1 << number) for number, account in enumerate(accounts) for place in _borders(trees[account])
    )
    holders, begin = 0, 0
    for place, bit in borders:
        if holders and place > begin:
            slots[holders] = slots.get(holders, 0) + place - begin
        holders, begin = holders ^ bit, place
    held = dict.fromkeys(accounts, 0)
    for holders, count in slots.items():
        sharing = [account for number, account in enumerate(accounts) if holders >> number & 1]
        for account, part in split_evenly(count * bytes_per_slot, sharing).items():
            held[account] += part
    return held


def _tokens(tree: Tree) -> int:
    if tree.stored is not None:
        return sum(span.count for span in tree.spans) + len(tree.tentative)
    return (tree.tip.position + 1 - tree.dropped if tree.tip is not None else 0) + len(tree.tentative)


def _borders(trees: Sequence[Tree]) -> Iterator[int]:
    """Yields where the slots of these trees begin and end, in turn: each slot once, those side by side together."""
    end = -1
    begin: int | None = None
    for first, last in sorted({stretch for tree in trees for stretch in _stretches(tree)}):
        if begin is None or first > end:
            if begin is not None:
                yield from (begin, end)
            begin, end = first, last
        else:
            end = max(end, last)
    if begin is not None:
        yield from (begin, end)


def _stretches(tree: Tree) -> Iterator[Stretch]:
    for span in tree.spans:
        if span.slots is None:
            yield span.start, span.start + span.count
        else:
            yield from ((slot, slot + 1) for slot in span.slots[: span.count])
    for node in tree.tentative:
        yield node.slot, node.slot + 1
