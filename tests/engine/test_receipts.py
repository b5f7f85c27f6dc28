"""A receipt's logits are made again by any exact method, in any batch and instruction set, or the place is told."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from outlay import kernels
from outlay.engine.receipt import Receipt
from outlay.errors import UsageError
from outlay.replay import replay
from outlay.testing import tiny_lm

OPTIONS = {"max_tokens": 30, "ignore_eos": True}


@pytest.fixture(scope="module")
def lm():
    if not kernels.available():
        pytest.skip("the native kernels are not built")
    return tiny_lm()


@pytest.fixture(scope="module")
def receipt(lm):
    return lm.generate("one one one two one one", method="greedy", receipt=True, **OPTIONS).receipt


@pytest.mark.parametrize("method", [None, "forced", "lookup", "auto", "beam:width=1"])
@pytest.mark.parametrize("beside", [0, 5])
def test_every_exact_method_gives_the_same_bits_in_any_batch(lm, receipt, method, beside):
    found = replay(lm, receipt, method=method, beside=beside)
    assert found.difference is None
    assert found.receipt.digest == receipt.digest
    assert len(receipt.links) == len(receipt.tokens) == 30


def test_drawn_texts_are_replayed_by_their_seed(lm):
    drawn = lm.generate("a text", temperature=1.0, top_p=0.9, seed=5, receipt=True, **OPTIONS).receipt
    assert replay(lm, drawn).difference is None
    assert replay(lm, drawn, method="lookup").difference is None
    assert replay(lm, drawn, method="forced").difference is None


def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(lm, receipt, each_isa):
    for _ in each_isa():
        for threads in (1, 2):
            kernels.set_threads(threads)
            assert replay(lm, receipt).difference is None
    kernels.set_threads(1)


def test_the_first_token_that_differs_is_told(lm, receipt):
    links = list(receipt.links)
    links[7] = "0" * 16
    assert replay(lm, replace(receipt, links=links)).difference == (7, "logits")
    tokens = list(receipt.tokens)
    tokens[3] = (tokens[3] + 1) % 256
    assert replay(lm, replace(receipt, tokens=tokens)).difference == (3, "token")


def test_one_bit_of_one_weight_is_found(receipt):
    other = tiny_lm()
    part = other.model.decoder.lm_head.packed.parts[0].data
    part[2] ^= 1
    same_name = replace(receipt, weights=_digest(other))
    assert replay(other, same_name, method="forced").difference is not None


def test_receipts_come_back_from_files(receipt, tmp_path):
    receipt.write(tmp_path / "receipt.json")
    assert Receipt.read(tmp_path / "receipt.json") == receipt
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(UsageError, match="no receipt"):
        Receipt.read(tmp_path / "broken.json")
    with pytest.raises(UsageError, match="can't be read"):
        Receipt.read(tmp_path / "missing.json")


def test_what_can_not_have_the_same_bits_is_refused(lm, receipt, monkeypatch):
    for change, message in (
        ({"weights": "0" * 64}, "others"), ({"arithmetic": 99}, "arithmetic 99"), ({"format": "int8"}, "held in int8"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            replay(lm, replace(receipt, **change))
    with pytest.raises(UsageError, match="no scorer, constraint or budget"):
        lm.generate("a", receipt=True, constraint="regex:a+", method="greedy")
    monkeypatch.setattr("outlay.lm.runs_whole", lambda decoder: False)
    with pytest.raises(UsageError, match="in our kernels whole"):
        lm.generate("a", receipt=True)


@pytest.mark.slow
def test_another_process_replays_the_default_models_receipt(default_path, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(kernels.__file__).parents[2])}
    command = [sys.executable, "-m", "outlay"]
    file = tmp_path / "receipt.json"
    words = ["run", "Why is the sky blue?", "--max-tokens", "12", "--receipt", file, "--quiet"]
    subprocess.run([*command, *words], env=environment, check=True, capture_output=True)
    for isa in ("avx2", "amx-emulated"):
        found = subprocess.run(
            [*command, "replay", file, "--method", "forced"], env=environment | {"OUTLAY_ISA": isa}, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr


def _digest(lm):
    from outlay.models.digest import weights_digest

    return weights_digest(lm.model).hex()
