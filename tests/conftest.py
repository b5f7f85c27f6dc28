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
SLOW_SECONDS = 3600  # that a slow test may take


def pytest_collection_modifyitems(items):
    """Gives slow tests their time, however they are run; leaves out what needs a GPU where there is none."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
    if not torch.cuda.is_available():
        items[:] = [item for item in items if item.get_closest_marker("gpu") is None]


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
