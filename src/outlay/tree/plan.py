"""The plan of a pass: which keys each new row reads, worked out once a tick and used by every layer.

A plan is a list of pieces. A piece is a contiguous span of slots and the rows that read it; where all of its rows see
all of it, it has no mask. A span that several trees share becomes one piece for all of their rows, so it is read once
(Hydragen, Juravsky et al. 2024). What a row reads is the union of its pieces, which are disjoint, and the merge of
their results by log-sum-exp is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outlay.tree.cache import Region
from outlay.tree.token_tree import Node, Span, Tree

SHARED_LENGTH = 32  # below this, reading what is shared apart costs more than reading it twice


@dataclass(frozen=True)
class Piece:
    """Slots [start, start + length), read by `rows` (indices into the pass). `mask` is bool [rows, length], True where
    a row sees a slot, or None where every row sees every slot. `base` is the position where the piece begins in a
    text."""

    base: int
    start: int
    length: int
    rows: tuple[int, ...]
    mask: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """One pass over `n` new nodes: their tokens, positions and slots, int64 [n], and what each of them reads.

    `pieces[window]` holds the pieces for layers with that sliding window (None: full attention), in the order of the
    text, so that what a row reads comes in the same order whoever shares the pass. `keys_seen[i]` is how many keys row
    i attends to under full attention, itself included. `once` says that every row is in exactly one piece.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    pieces: dict[int | None, list[Piece]]
    keys_seen: list[int]

    def once(self, window: int | None) -> bool:
        """Tells whether every row is in exactly one piece, so that nothing is left to merge."""
        return sum(len(piece.rows) for piece in self.pieces[window]) == len(self.keys_seen)


def plan_pass(
    work: Sequence[tuple[Tree, Sequence[Node]]], slot_positions: Tensor, windows: Sequence[int | None] = (None,)
) -> Plan:
    """Plans one pass over the nodes of several trees; each node comes after those above it, which are computed or
    listed before it. `slot_positions` is the cache's, int64 [capacity]."""
    nodes = [node for _, group in work for node in group]
    positions = torch.tensor([node.position for node in nodes])
    pieces: list[Piece] = []
    shared: dict[tuple[int, int], list[tuple[int, tuple[int, ...]]]] = {}
    first = 0
    for tree, group in work:
        _plan_tree(tree, group, first, positions[first : first + len(group)], pieces, shared)
        first += len(group)
    for (base, start), readers in shared.items():
        pieces += _share(base, start, readers)
    pieces.sort(key=lambda piece: (piece.base, piece.start))
    return Plan(
        tokens=torch.tensor([node.token for node in nodes]),
        positions=positions,
        slots=torch.tensor([node.slot for node in nodes]),
        pieces={window: _within(pieces, window, slot_positions, positions) for window in set(windows)},
        keys_seen=[node.position + 1 for node in nodes],
    )


def _plan_tree(
    tree: Tree,
    group: Sequence[Node],
    first: int,
    positions: Tensor,
    pieces: list[Piece],
    shared: dict[tuple[int, int], list[tuple[int, tuple[int, ...]]]],
) -> None:
    """Adds one tree's pieces; spans of which every row sees one prefix go to `shared`, keyed by where they start."""
    rows = tuple(range(first, first + len(group)))
    trying = _loose_slots(tree, group)
    for span in tree.spans:
        loose = trying.pop(span.region, None)
        if loose is None:
            _plan_span(span, group, rows, positions, pieces, shared)
        else:
            pieces += _masked(span.base, span.region.start, span.seen_by(positions), loose, rows)
    for region, loose in trying.items():  # the trunk has nothing there, so these lie below its tip
        below = tree.tip.position + 1 if tree.tip else 0
        pieces += _masked(below, region.start, torch.zeros(len(rows), 0, dtype=torch.bool), loose, rows)


def _loose_slots(tree: Tree, group: Sequence[Node]) -> dict[Region, list[tuple[int, int]]]:
    """Returns, for each region, the (row, offset) pairs that rows see because they are tried, not decided."""
    trying: dict[Region, list[tuple[int, int]]] = {}
    for row, node in enumerate(group):
        walk: Node | None = node
        while walk is not None and walk in tree.loose:
            trying.setdefault(walk.region, []).append((row, walk.slot - walk.region.start))
            walk = walk.parent
    return trying


def _plan_span(
    span: Span,
    group: Sequence[Node],
    rows: tuple[int, ...],
    positions: Tensor,
    pieces: list[Piece],
    shared: dict[tuple[int, int], list[tuple[int, tuple[int, ...]]]],
) -> None:
    start, end = span.region.start, span.base + span.count
    lowest = min(node.position for node in group)
    if span.count == span.top and lowest >= end - 1:
        shared.setdefault((span.base, start), []).append((span.count, rows))
    elif span.ordered and len(group) == 1:
        if lowest >= span.base:
            shared.setdefault((span.base, start), []).append((lowest - span.base + 1, rows))
    else:
        pieces += _masked(span.base, start, span.seen_by(positions), [], rows)


def _share(base: int, start: int, readers: list[tuple[int, tuple[int, ...]]]) -> list[Piece]:
    """Cuts one span, of which each reader sees a prefix, so that what several see is read once."""
    pieces, begin = [], 0
    while readers:
        length = min(seen for seen, _ in readers)
        rows = tuple(row for _, group in readers for row in group)
        worth = length - begin >= SHARED_LENGTH or all(seen == length for seen, _ in readers)
        if worth:
            pieces.append(Piece(base + begin, start + begin, length - begin, rows))
            begin = length
        else:
            pieces += [
                Piece(base + begin, start + begin, seen - begin, group) for seen, group in readers if seen == length
            ]
        readers = [(seen, group) for seen, group in readers if seen > length]
    return pieces


def _within(pieces: list[Piece], window: int | None, slot_positions: Tensor, positions: Tensor) -> list[Piece]:
    """Returns the pieces as a layer with this sliding window sees them: a row reads the last `window` positions."""
    if window is None or int(positions.max()) < window:
        return pieces
    narrowed = []
    for piece in pieces:
        held = slot_positions[piece.start : piece.start + piece.length]
        near = held > positions[list(piece.rows), None] - window
        seen = near if piece.mask is None else near & piece.mask
        narrowed += _masked(piece.base, piece.start, seen, [], piece.rows)
    return narrowed


def _masked(base: int, start: int, seen: Tensor, loose: list[tuple[int, int]], rows: tuple[int, ...]) -> list[Piece]:
    """Returns the piece of one region: `seen` of the trunk, bool [rows, top], and the `loose` (row, offset) pairs."""
    if loose:
        row_ids, offsets = zip(*loose, strict=True)
        top = max(seen.shape[1], max(offsets) + 1)
        mask = torch.zeros(len(rows), top, dtype=torch.bool)
        mask[:, : seen.shape[1]] = seen
        mask[torch.tensor(row_ids), torch.tensor(offsets)] = True
    else:
        mask = seen
    readers = mask.any(1)
    if not readers.all():
        rows = tuple(row for row, reads in zip(rows, readers.tolist(), strict=True) if reads)
        mask = mask[readers]
    if not rows:
        return []
    length = int(mask.any(0).nonzero()[-1]) + 1
    mask = mask[:, :length]
    return [Piece(base, start, length, rows, None if mask.all() else mask)]
