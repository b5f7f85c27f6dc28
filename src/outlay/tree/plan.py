"""The plan of a pass: which keys each new row reads, worked out once a tick and used by every layer.

A plan is a list of pieces. A piece is a list of slots, most often side by side, and the rows that read it. A span that
several trees share becomes one piece for all of their rows, so it is read once (Hydragen, Juravsky et al. 2024). What a
row reads is the union of its pieces, which are disjoint, and the merge of their results by log-sum-exp is exact.

Within a piece and from piece to piece, a row meets the keys of its path in the order of their positions, whichever
slots they took: what it reads depends on its path alone, not on what was tried, freed and grown before.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from outlay.tree.token_tree import Node, Span, Tree

SHARED_LENGTH = 32  # below this, reading what is shared apart costs more than reading it twice


class Piece(NamedTuple):
    """`length` keys, read by `rows` (indices into the pass), each of which sees at least one.

    The keys lie in slots [start, start + length), or in `slots` [length]. Row i sees the first `limits[i]` of them
    (None: all), and of these where `mask`, [rows, length] in one array, is 1 (None: everywhere). `base` is the position
    where the piece begins in a text. Integers have 64 bits, those of a mask 8.
    """

    base: int
    start: int
    length: int
    rows: tuple[int, ...]
    slots: array[int] | None = None
    limits: array[int] | None = None
    mask: array[int] | None = None


@dataclass(frozen=True)
class Plan:
    """One pass over n new nodes: of each its token, position and slot, and what it reads. In plain lists: a pass over a
    few rows takes less time than making tensors for it, when the weights have driven everything else from the caches.

    `vectors` are those that nodes come with, None for a node without one; empty where there are none at all.
    `pieces[window]` holds the pieces for layers with that sliding window (None: full attention), in the order of the
    text. `keys_seen[i]` is how many keys row i attends to under full attention, itself included.
    """

    tokens: list[int]
    positions: list[int]
    slots: list[int]
    pieces: dict[int | None, list[Piece]]
    keys_seen: list[int]
    vectors: Sequence[Tensor | None] = ()

    def once(self, window: int | None) -> bool:
        """Tells whether every row is in exactly one piece, so that nothing is left to merge."""
        return sum(len(piece.rows) for piece in self.pieces[window]) == len(self.keys_seen)


class _Reader(NamedTuple):
    """Rows that see the first `seen` tokens of a span."""

    span: Span
    seen: int
    rows: tuple[int, ...]


def plan_pass(
    work: Sequence[tuple[Tree, Sequence[Node]]],
    slot_positions: NDArray[np.int64],
    windows: Sequence[int | None] = (None,),
) -> Plan:
    """Plans one pass over the nodes of several trees; each node comes after those above it, which are computed or
    listed before it. `slot_positions` is the cache's, int64 [capacity]."""
    nodes = [node for _, group in work for node in group]
    positions = [node.position for node in nodes]
    pieces: list[Piece] = []
    shared: dict[tuple[int, int], list[_Reader]] = {}
    first = 0
    for tree, group in work:
        rows = tuple(range(first, first + len(group)))
        lowest = min(positions[first : first + len(group)])
        for span in tree.spans:
            if len(rows) == 1 or lowest >= span.base + span.count - 1:  # all rows see as much of it
                seen = min(lowest + 1 - span.base, span.count)
                if seen > 0:
                    shared.setdefault((span.base, span.start), []).append(_Reader(span, seen, rows))
            else:
                pieces += _plan_limited(span, rows, positions)
        if tree.loose:
            pieces += _plan_loose(tree, group, first)
        first += len(group)
    for readers in shared.values():
        pieces += _share(readers)
    pieces.sort(key=lambda piece: (piece.base, piece.start))
    vectors = [node.vector for node in nodes]
    return Plan(
        tokens=[node.token for node in nodes],
        positions=positions,
        slots=[node.slot for node in nodes],
        pieces={window: _within(pieces, window, slot_positions, positions) for window in set(windows)},
        keys_seen=[position + 1 for position in positions],
        vectors=vectors if any(vector is not None for vector in vectors) else (),
    )


def _plan_limited(span: Span, rows: tuple[int, ...], positions: Sequence[int]) -> list[Piece]:
    """Returns the piece of a span that rows see up to themselves; none where none of them reaches it."""
    limits = {row: min(positions[row] + 1 - span.base, span.count) for row in rows}
    limits = {row: limit for row, limit in limits.items() if limit > 0}
    if not limits:
        return []
    length = max(limits.values())
    return [Piece(span.base, span.start, length, tuple(limits), _slots(span, 0, length), array("q", limits.values()))]


def _plan_loose(tree: Tree, group: Sequence[Node], first: int) -> list[Piece]:
    """Returns the piece of what rows see because it is tried, not decided; none where they see nothing of that kind."""
    loose = tree.loose
    rows, paths = [], list[list[Node]]()
    for row, node in enumerate(group, first):
        path = []
        walk: Node | None = node
        while walk is not None and walk in loose:
            path.append(walk)
            walk = walk.parent
        if path:
            rows.append(row)
            paths.append(path)
    if not paths:
        return []
    keys = sorted({node for path in paths for node in path}, key=lambda node: (node.position, node.slot))
    column = {node: place for place, node in enumerate(keys)}
    mask = array("B", bytes(len(rows) * len(keys)))
    for place, path in enumerate(paths):
        for node in path:
            mask[place * len(keys) + column[node]] = 1
    seen = None if all(mask) else mask
    slots = _unless_straight([node.slot for node in keys])
    return [Piece(keys[0].position, keys[0].slot, len(keys), tuple(rows), slots, mask=seen)]


def _share(readers: list[_Reader], begin: int = 0) -> list[Piece]:
    """Cuts spans that start alike, of which each reader sees a beginning, so that what several see is read once."""
    pieces: list[Piece] = []
    if len(readers) == 1:
        return [_stretch(readers, begin, readers[0].seen)]
    while readers:
        length = min(reader.seen for reader in readers)
        alike = _alike(readers, begin, length)
        if len(alike) > 1:
            return pieces + [piece for group in alike for piece in _share(group, begin)]
        here = [reader for reader in readers if reader.seen == length]
        worth = length - begin >= SHARED_LENGTH or len(here) == len(readers)
        for group in [readers] if worth else [[reader] for reader in here]:
            pieces.append(_stretch(group, begin, length))
        if worth:
            begin = length
        readers = [reader for reader in readers if reader.seen > length]
    return pieces


def _stretch(readers: list[_Reader], begin: int, end: int) -> Piece:
    """Returns the piece of tokens [begin, end) of a span, for all of these readers."""
    span, rows = readers[0].span, readers[0].rows
    if len(readers) > 1:
        rows = tuple(row for reader in readers for row in reader.rows)
    slots = _slots(span, begin, end)
    start = span.start + begin if slots is None else slots[0]
    return Piece(span.base + begin, start, end - begin, rows, slots)


def _alike(readers: list[_Reader], begin: int, end: int) -> list[list[_Reader]]:
    """Groups readers by the slots of their tokens [begin, end)."""
    if all(reader.span.slots is None for reader in readers):
        return [readers]  # they start in the same slot
    groups: dict[bytes, list[_Reader]] = {}
    for reader in readers:
        slots = _slots(reader.span, begin, end)
        if slots is None:
            slots = array("q", range(reader.span.start + begin, reader.span.start + end))
        groups.setdefault(slots.tobytes(), []).append(reader)
    return list(groups.values())


def _slots(span: Span, begin: int, end: int) -> array[int] | None:
    """Returns the slots of a span's tokens [begin, end), or None where they lie side by side."""
    return None if span.slots is None else span.slots[begin:end]


def _unless_straight(slots: list[int]) -> array[int] | None:
    return None if slots == list(range(slots[0], slots[0] + len(slots))) else array("q", slots)


def _within(
    pieces: list[Piece], window: int | None, slot_positions: NDArray[np.int64], positions: Sequence[int]
) -> list[Piece]:
    """Returns the pieces as a layer with this sliding window sees them: a row reads the last `window` positions."""
    if window is None or max(positions) < window:
        return pieces
    narrowed, at = [], np.array(positions)
    for piece in pieces:
        where = slice(piece.start, piece.start + piece.length) if piece.slots is None else np.asarray(piece.slots)
        seen = slot_positions[where] > at[list(piece.rows), None] - window
        if piece.limits is not None:
            seen &= np.arange(piece.length) < np.asarray(piece.limits)[:, None]
        if piece.mask is not None:
            seen &= np.asarray(piece.mask).reshape(seen.shape).astype(np.bool_)
        narrowed += _tidy(piece._replace(limits=None), seen)
    return narrowed


def _tidy(piece: Piece, mask: NDArray[np.bool_]) -> list[Piece]:
    """Returns a piece of which rows see what a mask [rows, length] shows, without rows and ends that see nothing, and
    without a mask that hides nothing.
    """
    reads = np.flatnonzero(mask.any(1)).tolist()
    if not reads:
        return []
    columns = np.flatnonzero(mask.any(0))
    begin, end = int(columns[0]), int(columns[-1]) + 1
    mask = mask[reads, begin:end]
    slots = piece.slots if piece.slots is None else piece.slots[begin:end]
    return [
        Piece(
            piece.base + begin,
            piece.start + begin if slots is None else slots[0],
            end - begin,
            tuple(piece.rows[index] for index in reads),
            slots,
            mask=None if mask.all() else array("B", mask.tobytes()),
        )
    ]
