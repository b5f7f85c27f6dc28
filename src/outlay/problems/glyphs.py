"""The glyph world: pictures of a few glyphs in a grid, whose captions are known, with pairs that mostly come together.

Each of ten classes is a word; class 2i + 1 mostly comes with class 2i. A model that trusts this prior more than the
picture names what is not there in scenes where it is reversed. The glyphs are drawn at random, or handwritten digits.
Sources: the fixture of VASparse (Zhuang et al., CVPR 2025) and ZipVL (He et al., 2024) at small scale.
"""

from __future__ import annotations

import base64
import functools
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from outlay.errors import UsageError

SUMMARY = "pictures of 4 x 4 cells with drawn glyphs in noise, whose caption names the glyphs that are there"
QUESTION = "List the objects."
GRID, CELL = 4, 8  # cells a side, pixels a side of a cell
SIDE = GRID * CELL
EVEN = 0.4  # probability of each class 2i
WITH_PARTNER, WITHOUT_PARTNER, REVERSED = 0.92, 0.05, 0.15  # of class 2i + 1: beside 2i, without it, and reversed
ZERO, SCALE = 128, 32  # the byte of the value 0, and bytes of a value of 1: noise of 0.9 is rarely cut off
HELD_OUT_DIGITS = 540  # the last of the 1,797 images, by other hands than most of those before

Kind = Literal["drawn", "digits"]
WORDS: Mapping[Kind, tuple[str, ...]] = {
    "drawn": ("anchor", "bell", "candle", "drum", "engine", "feather", "guitar", "hammer", "island", "jacket"),
    "digits": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
}
"""The word of each class."""
NOISE: Mapping[Kind, float] = {"drawn": 0.9, "digits": 0.9}
"""Standard deviation of the noise of a pixel, in the units of a glyph, whose pixels go from -1 to 1."""


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it."""

    image: npt.NDArray[np.uint8]
    """uint8 [32, 32, 3]."""
    objects: tuple[str, ...]
    """The words of its classes, in the order of the classes."""
    cells: tuple[int, ...]
    """The cell of each, row by row from 0 to 15."""

    @property
    def caption(self) -> str:
        """The words, a space between them."""
        return " ".join(self.objects)


@dataclass(frozen=True)
class GlyphWorld:
    """Draws scenes.

    Args:
        kind: `"drawn"` glyphs, one pattern a class, or handwritten `"digits"`, images of which vary.
        reversed: Whether class 2i + 1 is rare beside class 2i, where otherwise it is frequent.
        training: Whether digits are of the images that models are trained on, or of those that are held out.
    """

    kind: Kind = "drawn"
    reversed: bool = False
    training: bool = False

    def __post_init__(self) -> None:
        if self.kind not in WORDS:
            raise UsageError(f"glyphs are {' or '.join(WORDS)}, not {self.kind!r}")

    def scenes(self, count: int, seed: int, begin: int = 0) -> list[Scene]:
        """Returns scenes number `begin` to `begin + count - 1` of a seed: a scene depends on seed and number alone."""
        return [self._scene(np.random.default_rng((seed, number))) for number in range(begin, begin + count)]

    def _scene(self, draw: np.random.Generator) -> Scene:
        present = np.zeros(0, dtype=np.int64)
        while not len(present):  # a scene has an object at least
            first = draw.random(5) < EVEN
            beside = REVERSED if self.reversed else WITH_PARTNER
            second = draw.random(5) < np.where(first, beside, WITHOUT_PARTNER)
            present = np.flatnonzero(np.stack([first, second], axis=1))
        cells = draw.permutation(GRID * GRID)[: len(present)]
        values = np.full((SIDE, SIDE, 3), -1.0 if self.kind == "digits" else 0.0)
        for number, cell in zip(present.tolist(), cells.tolist(), strict=True):
            row, column = (CELL * place for place in divmod(cell, GRID))
            values[row : row + CELL, column : column + CELL] = self._glyph(number, draw)
        values += NOISE[self.kind] * draw.standard_normal(values.shape)
        image = np.clip(np.rint(ZERO + SCALE * values), 0, 255).astype(np.uint8)
        return Scene(image, tuple(WORDS[self.kind][each] for each in present), tuple(cells.tolist()))

    def _glyph(self, number: int, draw: np.random.Generator) -> npt.NDArray[np.float64]:
        if self.kind == "drawn":
            return _patterns()[number]
        images = _digits(self.training)[number]
        return images[draw.integers(len(images))][..., None]


def make(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns `count` rows with `prompt`, `images` (a PNG file as a data URL), `answer` and `objects`."""
    return [
        {
            "prompt": QUESTION,
            "images": ["data:image/png;base64," + base64.b64encode(png(scene.image)).decode()],
            "answer": scene.caption,
            "objects": list(scene.objects),
        }
        for scene in GlyphWorld().scenes(count, seed)
    ]


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """Returns a picture, uint8 [height, width, 3], as a PNG file."""

    def chunks() -> Iterator[bytes]:
        height, width, _ = image.shape
        rows = b"".join(b"\0" + row.tobytes() for row in image)  # 0: a row without a filter
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),  # 8 bits, colour type 2: RGB
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        ):
            yield struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks())


@functools.cache
def _patterns() -> npt.NDArray[np.float64]:
    """Returns the drawn glyphs, [10, 8, 8, 3], uniform in [-1, 1]."""
    return np.random.default_rng(10).uniform(-1, 1, (10, CELL, CELL, 3))


@functools.cache
def _digits(training: bool) -> tuple[npt.NDArray[np.float64], ...]:
    """Returns the images of each digit, [n, 8, 8], from -1 (paper) to 1 (ink)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError("handwritten digits need an extra: pip install 'outlay[glyphs]'") from None
    data = load_digits()
    part = slice(None, -HELD_OUT_DIGITS) if training else slice(-HELD_OUT_DIGITS, None)
    images, labels = data.images[part] / 8 - 1, data.target[part]
    return tuple(images[labels == digit] for digit in range(10))
