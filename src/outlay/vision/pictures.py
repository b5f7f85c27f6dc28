"""Pictures of a folder, as networks read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from outlay.errors import UsageError
from outlay.pictures import pictures_in, read_picture

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the three colours in ImageNet, by which networks that were trained on it expect their pictures normalised."""


def read_folder(folder: Path, channels: int, sides: tuple[int, int], most: int | None = None) -> Tensor:
    """Returns the pictures of a folder, cut to the network's shape from their middle, in the order of their names.

    Args:
        folder: It holds pictures.
        channels: 3 for colours, normalised by ImageNet's mean and deviation; 1 for shades from -1 to 1.
        sides: Height and width.
        most: How many are read; None: all.

    Returns:
        float32 [pictures, channels, height, width].

    Raises:
        UsageError: For a folder without pictures, and for a file that is none.
    """
    if channels not in (1, 3):
        raise UsageError(f"pictures have 1 or 3 channels, not {channels}")
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    (height, width), paths = sides, pictures_in(folder)[:most]
    pictures = [read_picture(path) for path in paths]
    from PIL import Image, ImageOps  # which reading them has shown to be there

    found = []
    for picture in pictures:
        fitted = ImageOps.fit(Image.fromarray(picture).convert("RGB" if channels == 3 else "L"), (width, height))
        found.append(np.asarray(fitted, dtype=np.float32).reshape(height, width, channels))
    pixels = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) / 255
    mean, deviation = (MEAN, DEVIATION) if channels == 3 else ((0.5,), (0.5,))
    return (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(deviation).view(-1, 1, 1)
