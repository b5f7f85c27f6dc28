"""LLaDA's quota and commits, and LocalLeap's, against dlmserve 0.1.1 (MIT), whose sampler needs torch alone."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffuse.made import proposals

from outlay.diffuse.llada import LLaDA
from outlay.diffuse.localleap import LocalLeap
from outlay.diffuse.schedule import quotas

pytestmark = pytest.mark.slow

NAME = "dlmserve-0.1.1-py3-none-any.whl"
SHA256 = "c30d9d077c9c38f8b5fffa213fc8fb92a0ce79215c77f958f826516e41d807b9"
LENGTH, VOCAB, MASK = 12, 20, 19


@pytest.fixture(scope="module")
def sampler() -> ModuleType:
    """The module, taken from its wheel; the package itself wants another version of `transformers` than ours."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "outlay" / "tests"
    wheel = cache / NAME
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(cache)]
        if subprocess.run([*command, "dlmserve==0.1.1"], capture_output=True, check=False).returncode:
            pytest.skip("dlmserve 0.1.1 can't be fetched")
    assert sha256(wheel.read_bytes()).hexdigest() == SHA256
    with zipfile.ZipFile(wheel) as archive:
        archive.extract("dlmserve/sampler.py", cache)
    spec = importlib.util.spec_from_file_location("dlmserve_sampler", cache / "dlmserve" / "sampler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def case(seed, sharpness):
    """A canvas with some positions filled, and logits of random sharpness; the block may end before it."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(LENGTH, VOCAB, generator=draw) * sharpness
    logits[:, MASK] = -torch.inf
    masked = torch.rand(LENGTH, generator=draw) < 0.7
    end = int(torch.randint(4, LENGTH + 1, (), generator=draw))
    masked[int(torch.randint(0, end, (), generator=draw))] = True
    tokens = torch.where(masked, MASK, torch.randint(0, MASK, (LENGTH,), generator=draw))
    return logits, masked, tokens, end


def ours(logits, masked, end, quota):
    """The same as a rule sees it."""
    logprobs, best = logits.log_softmax(-1).max(-1)
    filled = np.flatnonzero(~masked.numpy()).tolist()
    return proposals(
        logprobs.exp().tolist(), filled, block=end, quotas=[quota], logits=logits, tokens=best.numpy(),
        logprobs=logprobs.double().numpy(),
    )  # fmt: skip


def written(tokens, made, chosen):
    return torch.where(torch.from_numpy(chosen), torch.from_numpy(made.tokens), tokens)


def test_a_schedule_is_theirs(sampler):
    for masks in range(1, 40):
        for steps in range(1, masks + 1):
            assert quotas(masks, steps) == sampler.compute_transfer_schedule(torch.tensor([masks]), steps)[0].tolist()


def test_llada_fills_what_it_fills(sampler):
    for seed in range(1000):
        logits, masked, tokens, end = case(seed, 1 + seed % 4)
        quota = min(1 + seed % 3, int(masked[:end].sum()))
        made = ours(logits, masked, end, quota)
        theirs = sampler.commit_top_k_by_confidence(
            tokens[None], logits[None], masked[None], torch.tensor([quota]), block_end_abs=end
        )
        assert torch.equal(written(tokens, made, LLaDA().chosen(made)), theirs[0])


def test_localleap_fills_what_it_fills_where_its_k_is_the_number_of_anchors(sampler):
    relaxed = 0
    for seed in range(2000):
        logits, masked, tokens, end = case(seed, 2 + seed % 3)
        made = ours(logits, masked, end, 1)
        anchors = int((made.eligible & (made.confidence >= 0.9)).sum())
        theirs = sampler.commit_with_local_leap(
            tokens[None], logits[None], masked[None], torch.tensor([max(anchors, 1)]), block_end_abs=end,
            anchor_threshold=0.9, neighbor_threshold=0.75, radius=4,
        )  # fmt: skip
        chosen = LocalLeap().chosen(made)
        relaxed += int(chosen.sum()) > max(anchors, 1)
        assert torch.equal(written(tokens, made, chosen), theirs[0])
    assert relaxed > 100
