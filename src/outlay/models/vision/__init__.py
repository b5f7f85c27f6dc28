"""Models that see: a vision tower, what connects it to the decoder, and how an image stands in a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from outlay.models.encoder import Encoder
from outlay.models.images import ImagePrompt, PlacedTile, Tile
from outlay.models.vision.connectors import Connector
from outlay.models.vision.stem import PatchStem


@dataclass(frozen=True)
class Tiled:
    """An image as the tower reads it."""

    tiles: Sequence[Tile]
    """Its parts row by row, and the whole image last; the image alone where it isn't cut."""
    rows: int = 0
    """Rows of parts; 0 where it isn't cut."""
    columns: int = 0
    """Columns of parts; 0 where it isn't cut."""


class ImageProcessor(Protocol):
    """Resizes and cuts images as a family's processor in `transformers` does."""

    def __call__(self, picture: npt.NDArray[np.uint8]) -> Tiled:
        """A picture, uint8 [height, width, 3] -> its tiles."""


class Placeholder(Protocol):
    """What a family's prompts have in the place of an image."""

    def __call__(self, image: Tiled) -> str:
        """Returns the text of an image, in which the image token stands for each visual token."""


@dataclass(frozen=True)
class Vision:
    """What a model sees with."""

    tower: Encoder
    """The network that reads tiles; its first layer's input comes from `stem`."""
    stem: PatchStem
    """Makes rows of pixels."""
    connector: Connector
    """Makes the decoder's input embeddings of the tower's output."""
    processor: ImageProcessor
    """Makes tiles of pictures."""
    placeholder: Placeholder
    """Writes the place of an image."""
    image_token: str
    """What stands for an image in the text of a prompt."""
    image_token_id: int
    """Its id, which stands for each visual token in a prompt's ids."""
    rows: int
    """Rows of the tower's pass over a tile."""
    count: int
    """Visual tokens of a tile."""
    fingerprint: str
    """Identifies the weights of tower and connector."""

    def place(self, tokens: Sequence[int], images: Sequence[Tiled]) -> ImagePrompt | None:
        """Returns a prompt whose image tokens stand for these images, in order; None where there is no
        place for each visual token."""
        tiles = [tile for image in images for tile in image.tiles]
        places = [place for place, token in enumerate(tokens) if token == self.image_token_id]
        if len(places) != len(tiles) * self.count:
            return None
        placed = [PlacedTile(places[at * self.count], self.count, tile) for at, tile in enumerate(tiles)]
        ends = places[self.count - 1 :: self.count]
        if any(each.start + each.length - 1 != end for each, end in zip(placed, ends, strict=True)):
            return None
        return ImagePrompt(tokens, placed)
