"""Trains the 32-channel codec of the tests, in a minute of one core: it proves claims, and is no picture codec.

    PYTHONPATH=src python tests/codec/make_tiny_codec.py

Data: pictures of the packages scikit-image (to train on) and scikit-learn (to test on; CC-BY).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "tiny-codec"
TRAINED_ON = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "ihc.png", "retina.jpg",
    "hubble_deep_field.jpg",
)  # fmt: skip
TESTED_ON = ("china.jpg", "flower.jpg")
SIZE = (320, 224)


def training_pictures(size=None):
    """Float32 [3, height, width] each."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return [opened(folder / name, size).permute(2, 0, 1).float() / 255 for name in TRAINED_ON]


def photos_of_tests():
    """Uint8 [224, 320, 3] each."""
    import sklearn

    folder = Path(sklearn.__file__).parent / "datasets" / "images"
    return [opened(folder / name, SIZE) for name in TESTED_ON]


def opened(path, size):
    """Uint8 [height, width, 3], of another size where one is given."""
    from PIL import Image

    picture = Image.open(path).convert("RGB")
    return torch.from_numpy(np.array(picture if size is None else picture.resize(size, Image.Resampling.LANCZOS)))


def train(seed):
    """A codec of the default recipe."""
    from outlay.train.picture_codec import PictureCodecRecipe, train_picture_codec

    torch.set_num_threads(1)
    return train_picture_codec(training_pictures(), PictureCodecRecipe(seed=seed), lambda *told: None)


def main() -> None:
    """Trains, and keeps the weights in half precision."""
    codec = train(0)
    codec.codec.half().float()
    codec.save(FOLDER)
    from safetensors.torch import load_file, save_file

    path = FOLDER / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)


if __name__ == "__main__":
    sys.exit(main())
