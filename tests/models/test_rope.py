"""Rotary tables are rounded once, so that every library of functions gives the same bits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch

from outlay.models.rope import Rope

DEFAULT = Rope(theta=100_000.0, dim=64)  # that of the default model, whose context is 8,192
POSITIONS = 8192
ULPS = 4  # of float64, by which a library of functions is wrong at most


@pytest.fixture(scope="module", autouse=True)
def precision():
    with mpmath.workprec(120):
        yield


def boundary_distance(values):
    """How far float64 values lie from the next boundary between two float32 numbers, in their own ulps."""
    nearest = values.astype(np.float32)
    other = np.nextafter(nearest, np.where(values > nearest, np.inf, -np.inf).astype(np.float32))
    boundary = (nearest.astype(np.float64) + other.astype(np.float64)) / 2
    return np.abs(values - boundary) / np.spacing(np.abs(values))


def test_the_default_model_has_this_rope(default_path):
    from outlay.models.gguf_config import hf_config
    from outlay.models.gguf_file import GgufFile

    config = hf_config(GgufFile(default_path))
    assert config["rope_theta"] == DEFAULT.theta
    assert config["hidden_size"] // config["num_attention_heads"] == DEFAULT.dim
    assert config["max_position_embeddings"] == POSITIONS


def test_frequencies_are_correctly_rounded():
    exact = [mpmath.power(mpmath.mpf(DEFAULT.theta), -mpmath.mpf(i) / DEFAULT.dim) for i in range(0, DEFAULT.dim, 2)]
    found = DEFAULT.frequencies()
    assert found.tolist() == [float(np.float32(float(value))) for value in exact]
    assert boundary_distance(np.array([float(value) for value in exact])[1:]).min() > ULPS  # the first is 1 itself


def test_cosines_and_sines_are_correctly_rounded_with_any_library():
    """No value lies so near to a boundary that a library which is wrong by a few ulps would round it otherwise."""
    angles = np.outer(np.arange(POSITIONS, dtype=np.float32), DEFAULT.frequencies().numpy())
    assert angles.dtype == np.float32
    for function, table in zip((np.cos, np.sin), DEFAULT.tables(POSITIONS, "cpu"), strict=True):
        values = function(angles.astype(np.float64))[1:]  # at position 0 they are exact
        assert torch.equal(table[1:], torch.from_numpy(values.astype(np.float32)))
        assert boundary_distance(values).min() > ULPS


def test_float64s_own_functions_are_within_an_ulp():
    angles = np.outer(np.arange(1, POSITIONS, 61, dtype=np.float32), DEFAULT.frequencies().numpy()[::3])
    for function, exactly in ((np.cos, mpmath.cos), (np.sin, mpmath.sin)):
        values = function(angles.astype(np.float64))
        exact = np.vectorize(lambda angle, exactly=exactly: float(exactly(mpmath.mpf(float(angle)))))(angles)
        assert (np.abs(values - exact) / np.spacing(np.abs(exact))).max() <= 1
