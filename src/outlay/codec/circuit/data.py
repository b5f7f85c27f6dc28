"""What circuits are fitted to: files of integers, folders of pictures of one size, tables of categories."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from outlay.codec.circuit.arrays import read_samples
from outlay.codec.circuit.patches import SHADES, samples_of
from outlay.errors import UsageError
from outlay.pictures import SUFFIXES, pictures_in

PATCHES = 200_000  # that a circuit is fitted to, at most: 390 MB
SMALLEST = 32  # pixels a side of a picture whose patches are taken


def read_data(path: Path, categories: int | None = None) -> tuple[Tensor, int]:
    """Reads data.

    Args:
        path: A `.npy` file of integers, a folder of pictures, or a `.csv` table with a header.
        categories: How many values a variable has; None: as many as the data have, 256 for pictures.

    Returns:
        Values int64 [samples, variables] and the number of categories.

    Raises:
        UsageError: For data that can't be read, or that have other values.
    """
    if path.is_dir():
        data, known = _pictures(path), SHADES
    elif path.suffix == ".csv":
        data, known = _table(path)
    else:
        try:
            data, known = read_samples(path.read_bytes()), 0
        except OSError as error:
            raise UsageError(f"can't read {path}: {error.strerror}") from error
    if not data.numel():
        raise UsageError(f"{path} has no samples")
    most = int(data.max()) + 1
    categories = categories or known or max(2, most)
    if int(data.min()) < 0 or most > categories:
        raise UsageError(
            f"{path} has values from {int(data.min())} to {most - 1}, and a circuit's are 0 to {categories - 1}"
        )
    return data, categories


def _pictures(folder: Path) -> Tensor:
    """Returns the samples of pictures of one size, channels last."""
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("pictures need an extra: pip install 'outlay[codec]'") from None
    found: list[np.ndarray] = []
    for path in sorted(each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES):
        with Image.open(path) as picture:
            pixels = np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))
        if found and pixels.shape != found[0].shape:
            raise UsageError(f"{path} is {pixels.shape}, and the pictures before are {found[0].shape}; give one size")
        found.append(pixels)
    if not found:
        raise UsageError(f"{folder} has no pictures ({', '.join(SUFFIXES)})")
    return torch.from_numpy(np.stack(found).reshape(len(found), -1).astype(np.int64))


def read_patches(folder: Path, channels: int, *, seed: int = 0, most: int = PATCHES) -> tuple[Tensor, list[str]]:
    """Reads patches of pictures with their borders, of the pictures as they are and at half their size.

    Args:
        folder: Where the pictures are, of any sizes.
        channels: 3, of the pictures in colour; 1, of all of them in grey.
        seed: Fixes which patches are taken where there are more than `most`, and their order.
        most: How many are taken at most.

    Returns:
        int64 [patches, variables], and the names of pictures that are in grey or can't be read.

    Raises:
        UsageError: Where there are no such pictures of 32 pixels a side or more.
    """
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("pictures need an extra: pip install 'outlay[codec]'") from None
    found: list[Tensor] = []
    left_out: list[str] = []
    for path in pictures_in(folder):
        try:
            with Image.open(path) as opened:
                usable = channels == 1 or opened.mode == "RGB"
                picture = opened.convert("RGB" if channels == 3 else "L")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            usable = False
        if not usable:
            left_out.append(path.name)
            continue
        half = picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)), Image.Resampling.LANCZOS)
        for each, step in ((picture, 6), (half, 3)):  # pixels from one patch to the next
            if min(each.size) >= SMALLEST:
                found.append(samples_of(np.asarray(each).reshape(each.height, each.width, channels), step))
    if not found:
        raise UsageError(f"{folder} has no {'pictures in colour' if channels == 3 else 'pictures'} of 32 pixels a side")
    samples = torch.cat(found)
    return samples[torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:most]], left_out


def _table(path: Path) -> tuple[Tensor, int]:
    """Returns the rows of a table, each column's texts numbered in their order, and the most texts of a column."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} can't be read as a table: {error}") from None
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise UsageError(f"{path} is no table with a header and rows of one length")
    columns = list(zip(*rows, strict=True))
    names = [{text: number for number, text in enumerate(sorted(set(column)))} for column in columns]
    values = [[known[text] for text in column] for known, column in zip(names, columns, strict=True)]
    return torch.tensor(values).T.contiguous(), max(2, *map(len, names))
