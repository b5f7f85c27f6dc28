"""Shared by all tests: the tests' folder on the path, one thread by default, and the default model where it is
needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def default_path():
    """The default model's file, fetched once into the user's cache."""
    from outlay.models import hub

    return hub.resolve("smollm2-135m")


@pytest.fixture(scope="session")
def default_lm(default_path):
    """The default model in float32, the reference."""
    import outlay

    return outlay.load(default_path, dtype="float32")
