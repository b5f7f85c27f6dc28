"""What each run holds in a model's KV cache: its slots, of which those that several runs hold are split to the byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from outlay.budget import Account
from outlay.engine.accounting import split_evenly
from outlay.tree.token_tree import Tree

Stretch = tuple[int, int]  # slots [begin, end)


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
