"""Scenes that are made: handwritten digits on photographs, with boxes that are exact by construction.

The digits are scikit-learn's (1,797 of 8 x 8 pixels), the backgrounds its two sample photographs. They are DEIMv2's
acceptance experiment: 1 to 4 digits of 18 to 52 pixels on 128 x 128, in bright colours, none on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from outlay.errors import UsageError
from outlay.vision.detect.datasets import GENERATED, Dataset, Example

SIDE = 128
"""Pixels a side of a scene."""
MOST = 4
"""Digits in a scene."""
SIZES = (18, 52)
"""Pixels that the digits' pictures have a side, from and to."""
FIRST_TEST = 1437
"""The first of the digits that only test scenes show."""
COUNTS = {"train": 16_000, "test": 200}
"""Scenes of each split."""
OPAQUE = 0.25
"""The least alpha of what belongs to a digit, where its box ends."""
DIM, LIFT = 0.6, 0.1
"""Backgrounds are multiplied and lifted by these, so that digits are brighter."""


class Scenes(Sequence[Example]):
    """Scenes that are made when they are asked for, each always alike."""

    def __init__(self, split: str, count: int) -> None:
        self.split, self._count = split, count
        _material()  # tells at once if scikit-learn is missing

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Example]: ...
    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(len(self))[place]]
        if not 0 <= place < self._count:
            raise IndexError(place)
        return scene(self.split, place)


def scenes(split: str, count: int | None = None) -> Dataset:
    """Returns the scenes of a split, `train` or `test`. Raises `UsageError` for another."""
    if split not in COUNTS:
        raise UsageError(f"{GENERATED} has the splits {' and '.join(COUNTS)}, not {split!r}")
    return Dataset(f"{GENERATED}:{split}", tuple("0123456789"), Scenes(split, count or COUNTS[split]))


def scene(split: str, place: int) -> Example:
    """Makes a scene, the same for the same place of a split."""
    draw = np.random.default_rng((sum(split.encode()), place))
    digits, labels, photographs = _material()
    known = np.arange(FIRST_TEST) if split == "train" else np.arange(FIRST_TEST, len(digits))
    photograph = photographs[draw.integers(len(photographs))]
    top, left = (int(draw.integers(side - SIDE)) for side in photograph.shape[:2])
    canvas = photograph[top : top + SIDE, left : left + SIDE].astype(np.float32) / 255 * DIM + LIFT
    boxes: list[tuple[int, int, int, int]] = []
    found: list[int] = []
    for _ in range(int(draw.integers(1, MOST + 1))):
        which = int(draw.choice(known))
        alpha = _enlarged(digits[which], int(draw.integers(SIZES[0], SIZES[1] + 1)))
        at = _free_place(alpha, boxes, draw)
        if at is None:
            continue
        x, y, box = at
        side = len(alpha)
        colour = draw.uniform(0.6, 1.0, 3)
        part = canvas[y : y + side, x : x + side]
        part[:] = part * (1 - alpha[..., None]) + colour * alpha[..., None]
        boxes.append(box)
        found.append(int(labels[which]))
    pixels = (canvas.clip(0, 1) * 255).round().astype(np.uint8)
    return Example(
        f"{split}-{place:05}", pixels, np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(found, dtype=np.int64), np.zeros(len(found), dtype=bool),
    )  # fmt: skip


def _free_place(
    alpha: npt.NDArray[np.float32], taken: Sequence[tuple[int, int, int, int]], draw: np.random.Generator
) -> tuple[int, int, tuple[int, int, int, int]] | None:
    """Returns a place where a digit covers none of the others, and its box; None where 20 draws find none."""
    rows, columns = np.nonzero((alpha > OPAQUE).any(1))[0], np.nonzero((alpha > OPAQUE).any(0))[0]
    tight = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    for _ in range(20):
        x, y = (int(draw.integers(SIDE - len(alpha) + 1)) for _ in range(2))
        box = (x + tight[0], y + tight[1], x + tight[2], y + tight[3])
        if all(box[2] <= o[0] or o[2] <= box[0] or box[3] <= o[1] or o[3] <= box[1] for o in taken):
            return x, y, box
    return None


def _enlarged(digit: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    from PIL import Image

    return np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)


@cache
def _material() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], list[npt.NDArray[np.uint8]]]:
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError:
        raise UsageError(f"the scenes of {GENERATED} need scikit-learn: pip install 'outlay[vision]'") from None
    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int64), list(load_sample_images().images)
