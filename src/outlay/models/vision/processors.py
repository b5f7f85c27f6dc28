"""Resizing and cutting of images, as the processors of `transformers` do it with Pillow, to the pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from outlay.errors import UsageError
from outlay.models.images import Tile
from outlay.models.vision import Tiled

Pixels = npt.NDArray[np.uint8]
LARGEST = 4096
"""Pixels of the longest side of an image before it is cut (Idefics3)."""


@dataclass(frozen=True)
class CroppedImage:
    """One tile: the image resized, then its middle cut out (CLIP), or squeezed into it whole (SigLIP)."""

    size: tuple[int, int] | int | None
    """Height and width to resize to, or the shorter side alone; None: images keep their size."""
    crop: tuple[int, int] | None
    """Height and width of the middle that is cut out; None: nothing is cut."""
    resample: int
    """Pillow's filter."""
    pad: tuple[int, int, int] | None = None
    """The colour with which images are made square before they are resized; None: they aren't."""

    def __call__(self, picture: Pixels) -> Tiled:
        """A picture, uint8 [height, width, 3] -> its one tile."""
        pixels = picture if self.pad is None else squared(picture, self.pad)
        if self.size is not None:
            size = self.size if isinstance(self.size, tuple) else shorter_side(pixels.shape, self.size)
            pixels = resized(pixels, size, self.resample)
        return Tiled([Tile(pixels if self.crop is None else middle(pixels, self.crop))])


@dataclass(frozen=True)
class SplitImage:
    """Square parts of the image row by row, then the whole image in one (Idefics3, SmolVLM)."""

    longest: int | None
    """Pixels of the longest side to resize to; None: images keep their size."""
    side: int
    """Pixels of a tile's side."""
    splits: bool
    """Whether images are cut at all."""
    resample: int
    """Pillow's filter."""

    def __call__(self, picture: Pixels) -> Tiled:
        """A picture, uint8 [height, width, 3] -> its parts and the whole."""
        pixels, side = picture, self.side
        if self.longest is not None:
            pixels = resized(pixels, longest_side(pixels.shape, self.longest), self.resample)
        if not self.splits:
            return Tiled([Tile(resized(pixels, (side, side), self.resample))])
        pixels = resized(pixels, whole_tiles(pixels.shape, side), self.resample)
        rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
        if rows == columns == 1:
            return Tiled([Tile(pixels)])
        parts = [
            Tile(np.ascontiguousarray(pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]))
            for row in range(rows)
            for column in range(columns)
        ]
        return Tiled([*parts, Tile(resized(pixels, (side, side), self.resample))], rows, columns)


def cropped_image(options: Mapping[str, Any]) -> CroppedImage:
    """Returns the processor that a `preprocessor_config.json` of CLIP, SigLIP or LLaVA describes."""
    size, crop = options.get("size", {"shortest_edge": 224}), options.get("crop_size", {"height": 224, "width": 224})
    mean = options.get("image_mean", CLIP_MEAN)
    return CroppedImage(
        size=_size(size) if options.get("do_resize", True) else None,
        crop=_square(crop) if options.get("do_center_crop", "crop_size" in options) else None,
        resample=int(options.get("resample", 3)),
        pad=tuple(int(value * 255) for value in mean) if options.get("do_pad") else None,  # type: ignore[arg-type]
    )


def split_image(options: Mapping[str, Any]) -> SplitImage:
    """Returns the processor that a `preprocessor_config.json` of Idefics3 or SmolVLM describes."""
    longest = options.get("size", {"longest_edge": 4 * 364}).get("longest_edge")
    if longest is None and options.get("do_resize", True):
        raise UsageError('the "size" in preprocessor_config.json has no longest_edge, by which images are resized')
    return SplitImage(
        longest=longest if options.get("do_resize", True) else None,
        side=options.get("max_image_size", {"longest_edge": 364})["longest_edge"],
        splits=bool(options.get("do_image_splitting", True)),
        resample=int(options.get("resample", 1)),
    )


def scale_mean_std(options: Mapping[str, Any], mean: Any, std: Any) -> tuple[float, list[float], list[float]]:
    """Returns what pixels are multiplied by, and the mean and deviation of each channel that they are normed by."""
    scale = float(options.get("rescale_factor", 1 / 255)) if options.get("do_rescale", True) else 1.0
    if not options.get("do_normalize", True):
        return scale, [0.0] * 3, [1.0] * 3
    return scale, list(options.get("image_mean") or mean), list(options.get("image_std") or std)


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def resized(picture: Pixels, size: tuple[int, int], resample: int) -> Pixels:
    """Returns a picture at a height and width, by one of Pillow's filters."""
    from PIL import Image

    height, width = size
    return np.array(Image.fromarray(picture).resize((width, height), resample=Image.Resampling(resample)))


def middle(picture: Pixels, size: tuple[int, int]) -> Pixels:
    """Returns the middle of a picture, with black around where it is smaller."""
    height, width = picture.shape[:2]
    tall, wide = max(height, size[0]), max(width, size[1])
    above, before = ceil((tall - height) / 2), ceil((wide - width) / 2)
    whole = np.zeros((tall, wide, 3), dtype=np.uint8)
    whole[above : above + height, before : before + width] = picture
    top, left = (height - size[0]) // 2 + above, (width - size[1]) // 2 + before
    return np.ascontiguousarray(whole[max(0, top) : top + size[0], max(0, left) : left + size[1]])


def squared(picture: Pixels, colour: tuple[int, int, int]) -> Pixels:
    """Returns a picture in the middle of a square of a colour."""
    height, width = picture.shape[:2]
    side = max(height, width)
    whole = np.empty((side, side, 3), dtype=np.uint8)
    whole[:] = colour
    above, before = (side - height) // 2, (side - width) // 2
    whole[above : above + height, before : before + width] = picture
    return whole


def shorter_side(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Returns the height and width at which the shorter side has a size."""
    height, width = shape[:2]
    longer = int(size * max(height, width) / min(height, width))
    return (longer, size) if width <= height else (size, longer)


def longest_side(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Returns the height and width at which the longer side has a size, and the other one is even (Idefics3)."""
    height, width = shape[:2]
    ratio = width / height
    if width >= height:
        width, height = size, int(size / ratio)
        height += height % 2
    else:
        height, width = size, int(size * ratio)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    ratio = width / height
    if width >= height and width > LARGEST:
        width, height = LARGEST, int(LARGEST / ratio)
    elif height > width and height > LARGEST:
        height, width = LARGEST, int(LARGEST * ratio)
    return max(height, 1), max(width, 1)


def whole_tiles(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Returns the height and width of the next larger grid of whole tiles (Idefics3)."""
    height, width = shape[:2]
    ratio = width / height
    if width >= height:
        width = ceil(width / side) * side
        height = ceil(int(width / ratio) / side) * side
    else:
        height = ceil(height / side) * side
        width = ceil(int(height * ratio) / side) * side
    return max(height, side), max(width, side)


def _size(size: Any) -> tuple[int, int] | int:
    if isinstance(size, Mapping) and "shortest_edge" in size:
        if size.get("longest_edge") is not None:
            raise UsageError(
                'the "size" in preprocessor_config.json limits the longest edge too, which outlay does not do'
            )
        return int(size["shortest_edge"])
    return int(size) if isinstance(size, int) else _square(size)


def _square(size: Any) -> tuple[int, int]:
    """Returns the height and width that an entry names, which may be one number for both."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    raise UsageError(f"preprocessor_config.json has a size of {size!r}, not of a height and a width")
