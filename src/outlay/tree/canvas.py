"""A canvas: positions of a text, some filled and the others masked, in slots of the cache.

It lies beside the token tree, behind the trunk of one, which may be empty. Its positions see all of the trunk and each
other: the whole canvas, or the blocks up to the end of their own (block-causal attention). A position's key and value
are overwritten by each pass that computes it. What was filled stays filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from torch import Tensor

from outlay.errors import CacheFull
from outlay.tree.cache import Cache, Region
from outlay.tree.token_tree import Node, Tree

_FILLS = count(1)


class Cell:
    """One position of a canvas. It is a row of a pass as a `Node` is.

    Attributes:
        token: the token's id; that of the mask where it is masked.
        position: how many tokens precede it in its text.
        slot: where its key and value lie in the cache.
        computed: whether they lie there.
        has_state: whether its hidden state was stored when it was computed.
        version: what the canvas held when its key and value were computed: `Canvas.version`.
    """

    __slots__ = ("computed", "has_state", "input_embed", "position", "region", "slot", "token", "version")

    def __init__(self, token: int, position: int, region: Region) -> None:
        self.token, self.position, self.region = token, position, region
        self.slot = region.allocate(position)
        self.computed = self.has_state = False
        self.input_embed: Tensor | None = None
        self.version = 0


class Canvas:
    """An array of tokens behind the trunk of `tree`.

    Attributes:
        cells: its positions in order.
        tree: the tree whose trunk precedes it.
        base: the position of its first cell.
        block: positions see the blocks up to the end of their own, counted from position 0 of the text; 0: they all see
            the whole canvas.
        version: a number that is another one after each fill, cut or growth.
    """

    def __init__(self, tree: Tree, tokens: Sequence[int], *, mask: int, block: int = 0) -> None:
        """Makes a canvas.

        Args:
            tree: the tree behind whose trunk it lies.
            tokens: token ids; `mask` where a position is masked.
            mask: the id that stands for a masked position.
            block: the size of a block of block-causal attention; 0 for full attention.

        Raises:
            CacheFull: where the cache has no room for it; nothing is held then.
        """
        self.tree, self.mask, self.block = tree, mask, block
        self.base = tree.tip.position + 1 if tree.tip is not None else 0
        self.cells: list[Cell] = []
        self.version = next(_FILLS)
        self._regions: list[Region] = []
        try:
            self.grow(tokens)
        except CacheFull:
            self.release()
            raise

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def cache(self) -> Cache:
        """The cache that holds its keys and values."""
        return self.tree.cache

    @property
    def end(self) -> int:
        """The position behind its last cell."""
        return self.base + len(self.cells)

    def token(self, position: int) -> int:
        """Returns the token at a position of the text."""
        return self._cell(position).token

    def is_masked(self, position: int) -> bool:
        """Tells whether a position of the text is masked."""
        return self._cell(position).token == self.mask

    def masked(self, begin: int, end: int) -> list[int]:
        """Returns the masked positions of the text from `begin` up to and without `end`."""
        return [cell.position for cell in self.rows(begin, end) if cell.token == self.mask]

    def rows(self, begin: int, end: int) -> list[Cell]:
        """Returns the cells of the positions from `begin` up to and without `end`."""
        return self.cells[max(begin - self.base, 0) : max(end - self.base, 0)]

    def reach(self, position: int) -> int:
        """Returns how many tokens of the text the row at a position sees, those of the trunk included."""
        if not self.block:
            return self.end
        return min((position // self.block + 1) * self.block, self.end)

    def fill(self, position: int, token: int) -> None:
        """Fills a masked position.

        Raises:
            ValueError: where it is filled already, or the token is the mask.
        """
        cell = self._cell(position)
        if cell.token != self.mask:
            raise ValueError(f"position {position} is filled already: what a canvas holds doesn't change")
        if token == self.mask:
            raise ValueError("a position can't be filled with the mask")
        cell.token, self.version = token, next(_FILLS)

    def grow(self, tokens: Sequence[int]) -> None:
        """Adds cells at the end.

        Raises:
            CacheFull: where the cache has no room for all of them; those that found room are there.
        """
        for done, token in enumerate(tokens):
            if not self._regions or not self._regions[-1].available:
                region = self.cache.region(len(tokens) - done)
                region.owner = self
                self._regions.append(region)
            self.cells.append(Cell(token, self.end, self._regions[-1]))
        self.version = next(_FILLS)

    def cut(self, length: int) -> None:
        """Drops the cells behind the first `length`."""
        dropped, self.cells = self.cells[length:], self.cells[:length]
        for cell in reversed(dropped):
            cell.region.free(cell.slot)
        self.version = next(_FILLS)

    def copy(self) -> Canvas:
        """Returns a canvas of the same tokens, keys and values behind the same trunk, to be filled apart from this one.

        Raises:
            CacheFull: where the cache has no room for it.
        """
        twin = Canvas(self.tree, [cell.token for cell in self.cells], mask=self.mask, block=self.block)
        for mine, other in zip(self.cells, twin.cells, strict=True):
            other.computed, other.has_state, other.version = mine.computed, mine.has_state, mine.version
        if any(cell.computed for cell in self.cells):
            self.cache.copy([cell.slot for cell in self.cells], [cell.slot for cell in twin.cells])
        twin.version = self.version
        return twin

    def hand_over(self, length: int) -> None:
        """Gives the first cells to the tree as nodes of its trunk, with their slots.

        Args:
            length: How many cells.

        Raises:
            ValueError: where one is masked, or was computed before the last fill.
        """
        given, kept = self.cells[:length], self.cells[length:]
        if any(cell.token == self.mask for cell in given):
            raise ValueError("a block is handed over when none of its positions is masked")
        if any(not cell.computed or cell.version != self.version for cell in given):
            raise ValueError("a block is handed over when all of it was computed with its last tokens")
        for cell in given:
            self.tree.adopt(cell.token, cell.region, cell.slot, has_state=cell.has_state)
        mine = {cell.region for cell in kept}
        for region in self._regions:
            if region not in mine:
                self.tree.take_over(region)
        self._regions = [region for region in self._regions if region in mine]
        self.base, self.cells = self.base + length, kept

    def stale_keys(self, rows: Sequence[Cell]) -> int:
        """Returns how many keys these rows would read that were computed before the canvas was what it is now."""
        here = {*rows}
        stale = [c.position for c in self.cells if c not in here and c.computed and c.version != self.version]
        return sum(sum(position < self.reach(row.position) for position in stale) for row in rows) if stale else 0

    def release(self) -> None:
        """Frees all of its slots."""
        cells, self.cells = self.cells, []
        for cell in reversed(cells):
            cell.region.free(cell.slot)
        for region in self._regions:
            if region.owner is self:
                region.trim()
        self._regions = []

    def _cell(self, position: int) -> Cell:
        return self.cells[position - self.base]


Row = Node | Cell
"""What a pass computes a row for."""
