"""Images as part of a prompt: the tiles that a vision tower reads, and prompts some of whose tokens stand for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

ROWS = 1 << 32  # more than any tile has visual tokens


@dataclass(frozen=True, eq=False)
class Tile:
    """Pixels as a vision tower reads them at once: an image, or a part of one. Tiles of the same pixels are equal."""

    pixels: npt.NDArray[np.uint8]
    """Uint8 [height, width, 3], resized and cut already."""

    @cached_property
    def digest(self) -> bytes:
        """Identifies the pixels."""
        return sha256(repr(self.pixels.shape).encode() + self.pixels.tobytes()).digest()

    def key(self, row: int) -> int:
        """Returns what identifies one of the tile's visual tokens: a negative number, so that it is no token's id."""
        return -(int.from_bytes(self.digest, "big") * ROWS + row + 2)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tile) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


class PlacedTile(NamedTuple):
    """A tile in a prompt."""

    start: int
    """The position of its first visual token."""
    length: int
    """How many visual tokens it has."""
    tile: Tile


class ImagePrompt(list[int]):
    """The token ids of a prompt with images: the model's image token stands where visual tokens are.

    A list of ids with what the ids can't tell. Text that is added to it keeps its images; a slice of it is ids alone.

    Attributes:
        placed: the tiles, in the order of the prompt.
    """

    def __init__(self, tokens: Iterable[int], placed: Iterable[PlacedTile]) -> None:
        super().__init__(tokens)
        self.placed = tuple(placed)

    def __add__(self, other: Any) -> Any:
        return ImagePrompt([*self, *other], self.placed)

    @cached_property
    def keys(self) -> list[int]:
        """What the prefix cache compares: ids where text is, and the keys of visual tokens."""
        keys = list(self)
        for start, length, tile in self.placed:
            keys[start : start + length] = [tile.key(row) for row in range(length)]
        return keys

    @property
    def positions(self) -> list[int]:
        """The positions of all visual tokens."""
        return [place for start, length, _ in self.placed for place in range(start, start + length)]

    @property
    def text(self) -> list[int]:
        """The token ids without those that stand for images."""
        seen = set(self.positions)
        return [token for place, token in enumerate(self) if place not in seen]


def keys_of(prompt: Sequence[int]) -> Sequence[int]:
    """Returns what identifies each token of a prompt: its id, or the pixels that it stands for."""
    return prompt.keys if isinstance(prompt, ImagePrompt) else prompt


def placed_in(prompt: Sequence[int]) -> Sequence[PlacedTile]:
    """Returns the tiles of a prompt; none where it has no images."""
    return prompt.placed if isinstance(prompt, ImagePrompt) else ()


def text_of(prompt: Sequence[int]) -> Sequence[int]:
    """Returns the token ids of a prompt without those that stand for images."""
    return prompt.text if isinstance(prompt, ImagePrompt) else prompt
