"""Pictures in files, bytes and arrays, read as people see them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from outlay.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Of the files that are taken from a folder."""
LARGEST_SIDE = 1 << 15
"""Pixels a side that a picture has at most."""


def read_picture(
    source: str | Path | bytes | npt.NDArray[np.uint8] | Image, most: int | None = None
) -> npt.NDArray[np.uint8]:
    """Returns a picture: turned as its EXIF says, grey as three equal channels, transparency laid on white.

    Args:
        source: A file, its bytes, an array uint8 [height, width] or [height, width, 3 or 4], or a Pillow picture.
        most: Pixels that it may have in all; None: as many as Pillow reads.

    Returns:
        uint8 [height, width, 3].

    Raises:
        UsageError: For what is no picture, is cut off, or is too large.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise UsageError("pictures need an extra: pip install 'outlay[images]'") from None
    named = source if isinstance(source, str | Path) else "the picture"
    try:
        if isinstance(source, np.ndarray):
            opened = Image.fromarray(source)
        elif isinstance(source, Image.Image):
            opened = source
        else:
            opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        if not 0 < min(opened.size) <= max(opened.size) <= LARGEST_SIDE:
            size = " x ".join(map(str, opened.size))
            raise UsageError(f"{named} has {size} pixels; 1 to {LARGEST_SIDE} a side are read")
        if most is not None and opened.size[0] * opened.size[1] > most:
            raise UsageError(f"{named} has {opened.size[0] * opened.size[1]} pixels; at most {most} are read")
        turned = ImageOps.exif_transpose(opened)
        if "A" in turned.mode or "transparency" in turned.info:
            layer = turned.convert("RGBA")
            turned = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return np.array(turned.convert("RGB"))
    except FileNotFoundError:
        raise UsageError(f"there is no file {named}") from None
    except UsageError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).partition(" <")[0] or type(error).__name__
        raise UsageError(f"{named} can't be read as a picture: {reason}") from None


def pictures_in(place: Path) -> list[Path]:
    """Returns the pictures of a folder by name, or the file itself.

    Raises:
        UsageError: Where there are none.
    """
    if not place.exists():
        raise UsageError(f"there is no folder {place}")
    found = sorted(each for each in (place.iterdir() if place.is_dir() else [place]) if each.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f"{place} has no pictures ({', '.join(SUFFIXES)})")
    return found
