"""The plan of a pass: which keys each new row reads, worked out once a tick and used by every layer.

A plan is a list of pieces. A piece is a list of slots, most often side by side, and the rows that read it. A span that
several trees share becomes one piece for all of their rows, so it is read once (Hydragen, Juravsky et al. 2024). What a
row reads is the union of its pieces, which are disjoint, and the merge of their results by log-sum-exp is exact.

Within a piece and from piece to piece, a row meets the keys of its path in the order of their positions, whichever
slots they took: what it reads depends on its path alone, not on what was tried, freed and grown before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from outlay.models.decoder import Given
from outlay.tree.token_tree import Node, Span, Tree

SHARED_LENGTH = 32  # below this, reading what is shared apart costs more than reading it twice
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Piece(NamedTuple):
    """`length` keys, read by `rows` (indices into the pass), each of which sees at least one.

    The keys lie in slots [start, start + length), or in `slots` [length]. Row i sees the first `limits[i]` of them
    (None: all), and of these where `mask` [rows, length] is True (None: everywhere). `base` is the position where the
    piece begins in a text.
    """

    base: int
    start: int
    length: int
    rows: tuple[int, ...]
    slots: Ints | None = None
    limits: Ints | None = None
    mask: Bools | None = None


@dataclass(frozen=True)
class Plan:
    """One pass over `n` new nodes: their tokens, positions and slots, int64 [n], and what each of them reads.

    `given` are the rows that come with a vector, and the vectors [given rows, hidden_size]; None where there are none.
    `pieces[window]` holds the pieces for layers with that sliding window (None: full attention), in the order of the
    text. `keys_seen[i]` is how many keys row i attends to under full attention, itself included.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    pieces: dict[int | None, list[Piece]]
    keys_seen: list[int]
    given: Given | None = None

    def once(self, window: int | None) -> bool:
        """Tells whether every row is in exactly one piece, so that nothing is left to merge."""
        return sum(len(piece.rows) for piece in self.pieces[window]) == len(self.keys_seen)


class _Reader(NamedTuple):
    """Rows that see the first `seen` tokens of a span."""

    span: Span
    seen: int
    rows: tuple[int, ...]


def plan_pass(
    work: Sequence[tuple[Tree, Sequence[Node]]], slot_positions: Ints, windows: Sequence[int | None] = (None,)
) -> Plan:
    """Plans one pass over the nodes of several trees; each node comes after those above it, which are computed or
    listed before it. `slot_positions` is the cache's, int64 [capacity]."""
    nodes = [node for _, group in work for node in group]
    positions = np.array([node.position for node in nodes])
    pieces: list[Piece] = []
    shared: dict[tuple[int, int], list[_Reader]] = {}
    first = 0
    for tree, group in work:
        rows = tuple(range(first, first + len(group)))
        lowest = min(node.position for node in group)
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
    return Plan(
        tokens=indices([max(node.token, 0) for node in nodes]),
        positions=torch.from_numpy(positions),
        slots=indices([node.slot for node in nodes]),
        pieces={window: _within(pieces, window, slot_positions, positions) for window in set(windows)},
        keys_seen=[node.position + 1 for node in nodes],
        given=_given(nodes),
    )


def _given(nodes: Sequence[Node]) -> Given | None:
    found = [(row, node, node.vector) for row, node in enumerate(nodes) if node.vector is not None]
    if not found:
        return None
    rows, some, vectors = zip(*found, strict=True)
    return Given(rows, vectors, [node.token < 0 for node in some])


def indices(values: Sequence[int]) -> torch.Tensor:
    """Returns integers as int64 [n]: a third of the time that `torch.tensor` takes."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _plan_limited(span: Span, rows: tuple[int, ...], positions: Ints) -> list[Piece]:
    """Returns the piece of a span that rows see up to themselves; none where none of them reaches it."""
    limits = np.minimum(positions[rows[0] : rows[-1] + 1] + 1 - span.base, span.count)
    reads = np.flatnonzero(limits > 0)
    if not len(reads):
        return []
    length = int(limits.max())
    readers = tuple((reads + rows[0]).tolist())
    return [Piece(span.base, span.start, length, readers, _slots(span, 0, length), limits[reads])]


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
    mask = bytearray(len(rows) * len(keys))
    for place, path in enumerate(paths):
        for node in path:
            mask[place * len(keys) + column[node]] = 1
    seen = None if all(mask) else np.frombuffer(mask, dtype=np.bool_).reshape(len(rows), len(keys))
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
    start = span.start + begin if slots is None else int(slots[0])
    return Piece(span.base + begin, start, end - begin, rows, slots)


def _alike(readers: list[_Reader], begin: int, end: int) -> list[list[_Reader]]:
    """Groups readers by the slots of their tokens [begin, end)."""
    if all(reader.span.slots is None for reader in readers):
        return [readers]  # they start in the same slot
    groups: dict[bytes, list[_Reader]] = {}
    for reader in readers:
        slots = _slots(reader.span, begin, end)
        if slots is None:
            slots = np.arange(reader.span.start + begin, reader.span.start + end)
        groups.setdefault(slots.tobytes(), []).append(reader)
    return list(groups.values())


def _slots(span: Span, begin: int, end: int) -> Ints | None:
    """Returns the slots of a span's tokens [begin, end), or None where they lie side by side."""
    return None if span.slots is None else np.array(span.slots[begin:end])


def _unless_straight(slots: list[int]) -> Ints | None:
    return None if slots == list(range(slots[0], slots[0] + len(slots))) else np.array(slots)


def _within(pieces: list[Piece], window: int | None, slot_positions: Ints, positions: Ints) -> list[Piece]:
    """Returns the pieces as a layer with this sliding window sees them: a row reads the last `window` positions."""
    if window is None or int(positions.max()) < window:
        return pieces
    narrowed = []
    for piece in pieces:
        where = slice(piece.start, piece.start + piece.length) if piece.slots is None else piece.slots
        seen = slot_positions[where] > positions[list(piece.rows), None] - window
        if piece.limits is not None:
            seen &= np.arange(piece.length) < piece.limits[:, None]
        if piece.mask is not None:
            seen &= piece.mask
        narrowed += _tidy(piece._replace(limits=None, mask=seen))
    return narrowed


def _tidy(piece: Piece) -> list[Piece]:
    """Returns a masked piece without rows and ends that see nothing, and without a mask that hides nothing."""
    mask = piece.mask
    assert mask is not None
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
            piece.start + begin if slots is None else int(slots[0]),
            end - begin,
            tuple(piece.rows[index] for index in reads),
            slots,
            mask=None if mask.all() else mask,
        )
    ]
