"""The plan of a pass: which keys each new row reads, worked out once a tick and used by every layer.

A plan is a list of `KVSpan`s: slots of the cache, most often side by side, and the rows that read them. A span that
several trees share is planned once for all of their rows, so it is read once (Hydragen, Juravsky et al. 2024). The
spans of a row are disjoint, so merging what it reads from each by log-sum-exp is exact.

Within a span and from span to span, a row meets the keys of its path in the order of their positions, whichever slots
they took. What it reads therefore depends on its path alone, not on what was tried, freed and grown before.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from outlay.tree.token_tree import Node, Tree, TrunkSpan

SHARED_LENGTH = 32  # below this, reading a shared span apart costs more than reading it twice


class KVSpan(NamedTuple):
    """`length` keys and values in the cache, and the rows that read them. Integers have 64 bits, those of a mask 8."""

    base: int
    """Position of the first key in its text."""
    start: int
    """Slot of the first key."""
    length: int
    """Number of keys."""
    rows: tuple[int, ...]
    """Indices into the pass. Each row sees at least one of the keys."""
    slots: array[int] | None = None
    """Slots of the keys, [length]. None: [start, start + length)."""
    limits: array[int] | None = None
    """Row i sees the first `limits[i]` keys, [rows]. None: all of them."""
    mask: array[int] | None = None
    """1 where a row sees a key, [rows, length] in one array. None: everywhere."""


@dataclass(frozen=True)
class PassPlan:
    """One pass over n new nodes.

    The fields are plain lists: for a few rows, making tensors would take longer than planning, because the weights have
    driven everything else from the processor's caches.
    """

    tokens: list[int]
    """Token of each row, [n]. `NO_TOKEN` for a row that is an input embedding alone."""
    positions: list[int]
    """Position of each row in its text, [n]."""
    slots: list[int]
    """Slot that takes the key and value of each row, [n]."""
    kv_spans: dict[int | None, list[KVSpan]]
    """Spans by sliding window (None: full attention), in the order of the text."""
    keys_seen: list[int]
    """Keys that each row attends to under full attention, itself included, [n]."""
    inputs_embeds: Sequence[Tensor | None] = ()
    """Input embedding of each row, None where it has none, [n]. Empty if no row has one."""

    def each_row_once(self, window: int | None) -> bool:
        """Tells whether every row reads exactly one span, so that nothing has to be merged."""
        return sum(len(span.rows) for span in self.kv_spans[window]) == len(self.keys_seen)


class _Reader(NamedTuple):
    """Rows that see the first `seen` tokens of a trunk's span."""

    trunk: TrunkSpan
    seen: int
    rows: tuple[int, ...]


def plan_pass(
    work: Sequence[tuple[Tree, Sequence[Node]]],
    slot_positions: NDArray[np.int64],
    windows: Sequence[int | None] = (None,),
) -> PassPlan:
    """Plans one pass over the new nodes of several trees.

    Args:
        work: the nodes of each tree. The nodes above a node are computed already, or listed before it.
        slot_positions: the position of the token in each slot, int64 [capacity]: `Cache.positions`.
        windows: the sliding window of each layer, None for full attention.
    """
    nodes = [node for _, group in work for node in group]
    positions = [node.position for node in nodes]
    spans = _plan_full(work, positions)
    embeds = [node.input_embed for node in nodes]
    return PassPlan(
        tokens=[node.token for node in nodes],
        positions=positions,
        slots=[node.slot for node in nodes],
        kv_spans={window: _within(spans, window, slot_positions, positions) for window in set(windows)},
        keys_seen=[position + 1 for position in positions],
        inputs_embeds=embeds if any(embed is not None for embed in embeds) else (),
    )


def _plan_full(work: Sequence[tuple[Tree, Sequence[Node]]], positions: Sequence[int]) -> list[KVSpan]:
    """Returns the spans of full attention, in the order of the text."""
    spans: list[KVSpan] = []
    shared: dict[tuple[int, int], list[_Reader]] = {}
    first = 0
    for tree, group in work:
        rows = tuple(range(first, first + len(group)))
        lowest = min(positions[first : first + len(group)])
        for trunk in tree.spans:
            if len(rows) == 1 or lowest >= trunk.base + trunk.count - 1:  # all rows see equally much of it
                seen = min(lowest + 1 - trunk.base, trunk.count)
                if seen > 0:
                    shared.setdefault((trunk.base, trunk.start), []).append(_Reader(trunk, seen, rows))
            else:
                spans += _plan_limited(trunk, rows, positions)

        if tree.tentative:
            spans += _plan_tentative(tree, group, first)
        first += len(group)

    for readers in shared.values():
        spans += _share(readers)
    return sorted(spans, key=lambda span: (span.base, span.start))


def _plan_limited(trunk: TrunkSpan, rows: tuple[int, ...], positions: Sequence[int]) -> list[KVSpan]:
    """Plans a trunk's span that each row sees up to its own position; returns nothing if no row reaches it."""
    limits = {row: min(positions[row] + 1 - trunk.base, trunk.count) for row in rows}
    limits = {row: limit for row, limit in limits.items() if limit > 0}
    if not limits:
        return []
    length = max(limits.values())
    slots = _slots(trunk, 0, length)
    return [KVSpan(trunk.base, trunk.start, length, tuple(limits), slots, array("q", limits.values()))]


def _plan_tentative(tree: Tree, group: Sequence[Node], first: int) -> list[KVSpan]:
    """Plans the tentative nodes that rows see; returns nothing if they see none. `first` is the group's first row."""
    rows, paths = [], list[list[Node]]()
    for row, node in enumerate(group, first):
        path = tree.tentative_path(node)
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

    slots = [node.slot for node in keys]
    contiguous = slots == list(range(slots[0], slots[0] + len(slots)))
    return [
        KVSpan(
            keys[0].position,
            keys[0].slot,
            len(keys),
            tuple(rows),
            None if contiguous else array("q", slots),
            mask=None if all(mask) else mask,
        )
    ]


def _share(readers: list[_Reader], begin: int = 0) -> list[KVSpan]:
    """Cuts spans that start alike, of which each reader sees a beginning, so that shared keys are read once."""
    spans: list[KVSpan] = []
    if len(readers) == 1:
        return [_stretch(readers, begin, readers[0].seen)]
    while readers:
        length = min(reader.seen for reader in readers)
        alike = _alike(readers, begin, length)
        if len(alike) > 1:
            return spans + [span for group in alike for span in _share(group, begin)]
        ending = [reader for reader in readers if reader.seen == length]
        worth = length - begin >= SHARED_LENGTH or len(ending) == len(readers)
        for group in [readers] if worth else [[reader] for reader in ending]:
            spans.append(_stretch(group, begin, length))
        if worth:
            begin = length
        readers = [reader for reader in readers if reader.seen > length]
    return spans


def _stretch(readers: list[_Reader], begin: int, end: int) -> KVSpan:
    """Returns the span of tokens [begin, end) of a trunk's span, for all of these readers."""
    trunk, rows = readers[0].trunk, readers[0].rows
    if len(readers) > 1:
        rows = tuple(row for reader in readers for row in reader.rows)
    slots = _slots(trunk, begin, end)
    start = trunk.start + begin if slots is None else slots[0]
    return KVSpan(trunk.base + begin, start, end - begin, rows, slots)


def _alike(readers: list[_Reader], begin: int, end: int) -> list[list[_Reader]]:
    """Groups readers by the slots of their tokens [begin, end)."""
    if all(reader.trunk.slots is None for reader in readers):
        return [readers]  # they start in the same slot
    groups: dict[bytes, list[_Reader]] = {}
    for reader in readers:
        slots = _slots(reader.trunk, begin, end)
        if slots is None:
            slots = array("q", range(reader.trunk.start + begin, reader.trunk.start + end))
        groups.setdefault(slots.tobytes(), []).append(reader)
    return list(groups.values())


def _slots(trunk: TrunkSpan, begin: int, end: int) -> array[int] | None:
    """Returns the slots of a span's tokens [begin, end), or None where they lie side by side."""
    return None if trunk.slots is None else trunk.slots[begin:end]


def _within(
    spans: list[KVSpan], window: int | None, slot_positions: NDArray[np.int64], positions: Sequence[int]
) -> list[KVSpan]:
    """Returns the spans of a layer with this sliding window: a row reads the last `window` positions."""
    if window is None or max(positions) < window:
        return spans
    narrowed, at = [], np.array(positions)
    for span in spans:
        where = slice(span.start, span.start + span.length) if span.slots is None else np.asarray(span.slots)
        seen = slot_positions[where] > at[list(span.rows), None] - window
        if span.limits is not None:
            seen &= np.arange(span.length) < np.asarray(span.limits)[:, None]
        if span.mask is not None:
            seen &= np.asarray(span.mask).reshape(seen.shape).astype(np.bool_)
        narrowed += _trimmed(span, seen)
    return narrowed


def _trimmed(span: KVSpan, mask: NDArray[np.bool_]) -> list[KVSpan]:
    """Returns a span as a mask [rows, length] shows it, without rows, first and last keys that nobody sees.

    A mask that hides nothing is left out; a span of which nothing is left is, too.
    """
    reads = np.flatnonzero(mask.any(1)).tolist()
    if not reads:
        return []
    columns = np.flatnonzero(mask.any(0))
    begin, end = int(columns[0]), int(columns[-1]) + 1
    mask = mask[reads, begin:end]
    slots = None if span.slots is None else span.slots[begin:end]
    return [
        KVSpan(
            span.base + begin,
            span.start + begin if slots is None else slots[0],
            end - begin,
            tuple(span.rows[index] for index in reads),
            slots,
            mask=None if mask.all() else array("B", mask.tobytes()),
        )
    ]
