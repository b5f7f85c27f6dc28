"""The detectors that come with the package: how they were made, and what they find after each layer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from outlay.models.hub import shipped
from outlay.vision import detect
from outlay.vision.detect.checkpoints import KIND
from outlay.vision.detect.choose import grades
from outlay.vision.detect.datasets import read_dataset

BCCD = os.environ.get("OUTLAY_BCCD", "")
"""The folder of the blood-cell photographs, in VOC's form (github.com/Shenggan/BCCD_Dataset, MIT)."""


@pytest.fixture(scope="module")
def digits():
    return detect.load("outlay/digits-atto")


def test_they_are_about_a_megabyte_and_say_how_they_were_made():
    assert set(shipped(KIND)) == {"outlay/digits-atto", "outlay/cells-atto"}
    assert not set(shipped(KIND)) & set(shipped())
    for folder in shipped(KIND).values():
        assert (folder / "model.safetensors").stat().st_size < 1.15e6
        config = json.loads((folder / "config.json").read_text())
        assert config["command"].startswith("outlay vision train detect ")
        assert config["recipe"]["steps"] > 0
        assert 0 < config["measured"]["ap50"] < 1


def test_digits_are_found_and_early_layers_are_near_the_last(digits):
    torch.set_num_threads(1)
    scores = grades(digits, read_dataset("digits:test"), [(1, 60), (2, 60), (3, 60)])
    last = scores[(3, 60)]
    assert last.ap50 >= 0.80
    assert last.ap75 >= 0.60
    assert scores[(2, 60)].ap50 >= last.ap50 - 0.03
    assert scores[(1, 60)].ap50 >= last.ap50 - 0.10
    # More layers find more, but for one point.
    assert scores[(2, 60)].ap >= scores[(1, 60)].ap - 0.01
    assert last.ap >= scores[(2, 60)].ap - 0.01


@pytest.mark.slow
@pytest.mark.skipif(not Path(BCCD).is_dir() or not BCCD, reason="needs the photographs: OUTLAY_BCCD=FOLDER")
def test_cells_are_found():
    loaded, data = detect.load("outlay/cells-atto"), read_dataset(f"{BCCD}:test")
    assert grades(loaded, data, [(3, 100)])[(3, 100)].ap50 >= 0.60
