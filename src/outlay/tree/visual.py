"""Visual tokens: nodes that read an input embedding which a vision tower makes of pixels, once for all who ask.

A node of an image holds no tensor but a place in its tile's `Visual`, whose embeddings are there when a pass needs
them. So a prompt is planted before anything is computed, and the prefix cache tells nodes apart by their pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple
from weakref import WeakValueDictionary

from torch import Tensor

from outlay.models.images import Tile
from outlay.tree.encoded import EncoderOutput


class Visual:
    """The input embeddings of one tile.

    Attributes:
        input: the tile.
        rows: how many rows of the tower's pass read it.
        count: how many visual tokens it has.
        output: its embeddings, [count, hidden_size]; None while they are not computed, or were let go.
    """

    def __init__(self, input: Tile, rows: int, count: int) -> None:
        self.input, self.rows, self.count = input, rows, count
        self.output: EncoderOutput | None = None

    def __len__(self) -> int:
        return self.rows

    @property
    def computed(self) -> bool:
        """Whether its embeddings are there."""
        return self.output is not None


class VisualToken(NamedTuple):
    """What a node of an image reads in place of a token's embedding."""

    visual: Visual
    row: int

    @property
    def embed(self) -> Tensor:
        """The input embedding, [hidden_size]."""
        assert self.visual.output is not None, "a tile is looked at before the pass that reads it"
        return self.visual.output.states[self.row]

    @property
    def key(self) -> int:
        """What the prefix cache knows it by."""
        return self.visual.input.key(self.row)


class Visuals:
    """The tiles that a model's prompts have, each once, and the embeddings of those that were asked for last."""

    def __init__(self, rows: int, count: int, limit: int) -> None:
        """Makes an empty store.

        Args:
            rows: how many rows of the tower's pass read a tile.
            count: how many visual tokens a tile has.
            limit: how many visual tokens' embeddings are cached; 0: as long as a request needs them.
        """
        self._rows, self._count, self._limit = rows, count, limit
        self._by_tile: WeakValueDictionary[Tile, Visual] = WeakValueDictionary()
        self._used: OrderedDict[Visual, None] = OrderedDict()  # those with embeddings, the last used at the end

    def open(self, tile: Tile) -> Visual:
        """Returns the tile as nodes hold it."""
        visual = self._by_tile.get(tile)
        if visual is None:
            visual = self._by_tile[tile] = Visual(tile, self._rows, self._count)
        return visual

    def keep(self, read: set[Visual]) -> None:
        """Keeps the embeddings that passes read now, and lets go of others beyond the limit, the least used first."""
        for visual in read:
            self._used[visual] = None
            self._used.move_to_end(visual)
        for visual in list(self._used):
            if len(self._used) * self._count <= self._limit:
                return
            if visual not in read:
                self._drop(visual)

    def clear(self) -> None:
        """Lets go of all embeddings; a pass that still needs some has them computed anew."""
        for visual in list(self._used):
            self._drop(visual)

    def _drop(self, visual: Visual) -> None:
        del self._used[visual]
        visual.output = None
