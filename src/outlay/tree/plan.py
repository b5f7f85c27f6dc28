"""The plan of a pass: which keys each new row reads, worked out once a tick and used by every layer.

A plan is a list of `KVSpan`s: slots of the cache, most often side by side, and the rows that read them. A span that
several trees share is planned once for all of their rows, so it is read once (Hydragen, Juravsky et al. 2024). The
spans of a row are disjoint, so merging what it reads from each by log-sum-exp is exact.

Within a span and from span to span, a row meets the keys of its path in the order of their positions, whichever slots
they took. What it reads therefore depends on its path alone, not on what was tried, freed and grown before.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from outlay.tree.canvas import Canvas, Cell, Row
from outlay.tree.stored import Segment
from outlay.tree.token_tree import Node, Tree, TrunkSpan
from outlay.tree.visual import VisualToken

if TYPE_CHECKING:
    from outlay.tree.memory import Memory

NEVER = 1 << 62  # shared keys from which on it pays, where it doesn't at any length


@dataclass(frozen=True)
class BreakEven:
    """When it pays to read what several rows share apart from the rest of their keys, once for all of them.

    The cost is one more span for each row; the gain are the keys that are not read again.
    """

    rows: tuple[int, ...]
    """Numbers of rows, ascending; for fewer than the first it never pays."""
    lengths: tuple[int, ...]
    """From how many shared keys on it pays, for as many rows as `rows` says or more."""

    def pays(self, rows: int, length: int) -> bool:
        """Tells whether `rows` rows gain by reading `length` shared keys apart."""
        at = bisect_right(self.rows, rows) - 1
        return at >= 0 and length >= self.lengths[at]

    def said(self, rows: int) -> str:
        """Returns, in words, from how many texts and shared tokens on it pays, for `rows` rows."""
        pairs = [(least, length) for least, length in zip(self.rows, self.lengths, strict=True) if length < NEVER]
        some = [pair for pair in pairs if pair[0] <= rows][-1:] or pairs[:1]
        return f"from {some[0][0]} texts and {some[0][1]} tokens on" if some else "at no length"

    def limited(self, min_rows: int | None, min_prefix: int | None) -> BreakEven:
        """Returns this break-even with another least number of rows or of keys, where they are given."""
        least = min_rows or self.rows[0]
        rows = (least, *(each for each in self.rows if each > least))
        if min_prefix is not None:
            return BreakEven((least,), (min_prefix,))
        return BreakEven(rows, tuple(self.lengths[max(0, bisect_right(self.rows, each) - 1)] for each in rows))


ASSUMED = BreakEven((2,), (32,))  # before anything is measured


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


class StoredSpan(NamedTuple):
    """What a policy holds of some tokens, and the rows that read all of it."""

    segment: Segment
    """The tokens: another number in each layer."""
    rows: tuple[int, ...]
    """Indices into the pass."""


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
    memory_spans: Sequence[KVSpan] = ()
    """What rows read of their memories, in the cache of memories: each row reads one span, all of it."""
    stored: Sequence[StoredSpan] = ()
    """What rows read of the tokens that policies hold, each with other lengths in other layers."""

    @property
    def of_memory(self) -> PassPlan:
        """The plan by which the rows read their memories: it writes nothing."""
        return PassPlan([], self.positions, [], {None: list(self.memory_spans)}, self.keys_seen)

    def each_row_once(self, window: int | None) -> bool:
        """Tells whether every row reads exactly one span, so that nothing has to be merged."""
        return sum(len(span.rows) for span in self.kv_spans[window]) == len(self.keys_seen)


class _Reader(NamedTuple):
    """Rows that see the first `seen` tokens of a trunk's span."""

    trunk: TrunkSpan
    seen: int
    rows: tuple[int, ...]
    asked: BreakEven | None
    """When the tree's run wants it read apart; None where what pays decides."""


def plan_pass(
    work: Sequence[tuple[Tree, Sequence[Node]]],
    slot_positions: NDArray[np.int64],
    windows: Sequence[int | None] = (None,),
    canvases: Sequence[tuple[Canvas, Sequence[Cell]]] = (),
    sharing: BreakEven = ASSUMED,
) -> PassPlan:
    """Plans one pass over the new nodes of several trees, and over cells of canvases.

    Args:
        work: the nodes of each tree. The nodes above a node are computed already, or listed before it.
        slot_positions: the position of the token in each slot, int64 [capacity]: `Cache.positions`.
        windows: the sliding window of each layer, None for full attention.
        canvases: the cells of each canvas, whose rows follow those of the trees. What they see is computed already, or
            listed as well.
        sharing: when rows read apart what they share.
    """
    nodes: list[Row] = [node for _, group in work for node in group]
    reaches = [tree.reach(node.position) for tree, group in work for node in group]
    dropped = [tree.dropped_above(node.position) for tree, group in work for node in group]
    for canvas, cells in canvases:
        nodes += cells
        dropped += [0] * len(cells)
        reaches += [canvas.reach(cell.position) for cell in cells]
    positions = [node.position for node in nodes]
    spans = _plan_full(work, canvases, reaches, sharing)
    embeds = [*map(embed_of, nodes)]
    return PassPlan(
        tokens=[node.token for node in nodes],
        positions=positions,
        slots=[node.slot for node in nodes],
        kv_spans={window: _within(spans, window, slot_positions, positions) for window in set(windows)},
        keys_seen=[reach - lost for reach, lost in zip(reaches, dropped, strict=True)],
        inputs_embeds=embeds if any(embed is not None for embed in embeds) else (),
        memory_spans=_plan_memories(work),
        stored=_plan_stored(work),
    )


def embed_of(row: Row) -> Tensor | None:
    """Returns the input embedding of a row, as the tower made it where the row is of an image; None without one."""
    embed = row.input_embed
    return embed.embed if isinstance(embed, VisualToken) else embed


def plan_inputs(lengths: Sequence[int], start: int = 0, windows: Sequence[int | None] = (None,)) -> PassPlan:
    """Plans a pass of an encoder over several inputs side by side, where each row sees its own input.

    Args:
        lengths: the length of each input.
        start: the slot of the first row; those of the others follow.
        windows: for each layer, how far a row sees to both sides (None: its whole input).
    """
    positions = [position for length in lengths for position in range(length)]
    spans, first = [], 0
    for length in lengths:
        spans.append(KVSpan(0, start + first, length, tuple(range(first, first + length))))
        first += length
    return PassPlan(
        tokens=[0] * first,
        positions=positions,
        slots=list(range(start, start + first)),
        kv_spans={window: _around(spans, window) for window in {None, *windows}},
        keys_seen=[length for length in lengths for _ in range(length)],
    )


def _around(spans: list[KVSpan], window: int | None) -> list[KVSpan]:
    """Returns the spans of a layer whose rows see as far as `window` to both sides."""
    if window is None or all(span.length <= window + 1 for span in spans):
        return spans
    narrowed = []
    for span in spans:
        places = np.arange(span.length)
        narrowed += _trimmed(span, np.abs(places[:, None] - places) <= window)
    return narrowed


def _plan_memories(work: Sequence[tuple[Tree, Sequence[Node]]]) -> list[KVSpan]:
    """Returns a span for each memory, which all rows below it read together."""
    readers: dict[Memory, list[int]] = {}
    first = 0
    for tree, group in work:
        if tree.memory is not None:
            readers.setdefault(tree.memory, []).extend(range(first, first + len(group)))
        first += len(group)
    return [memory.span(rows) for memory, rows in readers.items()]


def _plan_stored(work: Sequence[tuple[Tree, Sequence[Node]]]) -> list[StoredSpan]:
    """Returns a span for each segment, which all rows below it read together, in the order of the text."""
    readers: dict[Segment, list[int]] = {}
    first = 0
    for tree, group in work:
        if tree.stored is not None:
            for segment in tree.stored.segments:
                readers.setdefault(segment, []).extend(range(first, first + len(group)))
        first += len(group)
    spans = [StoredSpan(segment, tuple(rows)) for segment, rows in readers.items()]
    return sorted(spans, key=lambda span: (span.segment.base, span.rows))


def _plan_full(
    work: Sequence[tuple[Tree, Sequence[Node]]],
    canvases: Sequence[tuple[Canvas, Sequence[Cell]]],
    reaches: Sequence[int],
    sharing: BreakEven,
) -> list[KVSpan]:
    """Returns the spans of full attention, in the order of the text; row i sees the first `reaches[i]` tokens."""
    spans: list[KVSpan] = []
    shared: dict[tuple[int, int], list[_Reader]] = {}
    first = 0
    for tree, group in work:
        rows = tuple(range(first, first + len(group)))
        lowest = min(reaches[first : first + len(group)])
        for trunk in tree.spans:
            if len(rows) == 1 or lowest >= trunk.base + trunk.count:  # all rows see equally much of it
                seen = min(lowest - trunk.base, trunk.count)
                if seen > 0:
                    shared.setdefault((trunk.base, trunk.start), []).append(_Reader(trunk, seen, rows, tree.sharing))
            else:
                spans += _plan_limited(trunk, rows, reaches)

        if tree.tentative:
            spans += _plan_tentative(tree, group, first)
        first += len(group)

    for canvas, cells in canvases:
        rows = tuple(range(first, first + len(cells)))
        for trunk in canvas.tree.spans:
            reader = _Reader(trunk, trunk.count, rows, canvas.tree.sharing)
            shared.setdefault((trunk.base, trunk.start), []).append(reader)
        spans.append(_plan_canvas(canvas, rows, reaches))
        first += len(cells)

    for readers in shared.values():
        spans += _share(readers, sharing)
    return sorted(spans, key=lambda span: (span.base, span.start))


def _plan_canvas(canvas: Canvas, rows: tuple[int, ...], reaches: Sequence[int]) -> KVSpan:
    """Plans the cells of a canvas as far as its rows see them."""
    limits = [reaches[row] - canvas.base for row in rows]
    length = max(limits)
    slots = [cell.slot for cell in canvas.cells[:length]]
    contiguous = slots == list(range(slots[0], slots[0] + length))
    return KVSpan(
        canvas.base,
        slots[0],
        length,
        rows,
        None if contiguous else array("q", slots),
        None if min(limits) == length else array("q", limits),
    )


def _plan_limited(trunk: TrunkSpan, rows: tuple[int, ...], reaches: Sequence[int]) -> list[KVSpan]:
    """Plans a trunk's span that each row sees up to its own reach; returns nothing if no row reaches it."""
    limits = {row: min(reaches[row] - trunk.base, trunk.count) for row in rows}
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


def _share(readers: list[_Reader], sharing: BreakEven, begin: int = 0) -> list[KVSpan]:
    """Cuts spans that start alike, where each reader sees a beginning, so that shared keys are read once.

    Where all end together nothing is cut, and sharing costs nothing, unless a run asks otherwise.
    """
    spans: list[KVSpan] = []
    if len(readers) == 1:
        return [_stretch(readers, begin, readers[0].seen)]
    while readers:
        length = min(reader.seen for reader in readers)
        alike = _alike(readers, begin, length)
        if len(alike) > 1:
            return spans + [span for group in alike for span in _share(group, sharing, begin)]
        ending = [reader for reader in readers if reader.seen == length]
        asked = next((reader.asked for reader in readers if reader.asked is not None), None)
        rows = sum(len(reader.rows) for reader in readers)
        worth = (asked or sharing).pays(rows, length - begin) or (asked is None and len(ending) == len(readers))
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

    A mask that hides nothing is left out; so is a span of which nothing remains.
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
