"""The cache suite: what it measures is what the engine says, and its report is made of that alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from outlay.bench.cache.forced import measured
from outlay.bench.cache.parts import ADAPTIVE, PARTS
from outlay.bench.cache.report import parts, report
from outlay.bench.cache.suite import CacheSettings, passages
from outlay.catalog import parse_policy
from outlay.errors import UsageError
from outlay.testing import tiny_lm

TOKENS = [(7 * place) % 256 for place in range(90)]


def test_the_nats_are_those_of_the_tokens_that_follow():
    lm = tiny_lm()
    found = measured(lm, TOKENS, 60, None)
    result = lm.generate(TOKENS[:60], max_tokens=1, ignore_eos=True, logprobs=257)
    first = dict(result.logprobs[0].top)[TOKENS[60]]
    alone = measured(lm, TOKENS[:62], 60, None)["nats"]
    second = dict(lm.generate(TOKENS[:61], max_tokens=1, ignore_eos=True, logprobs=257).logprobs[0].top)[TOKENS[61]]
    assert alone == pytest.approx(-(first + second) / 2, abs=1e-5)
    kept = measured(lm, TOKENS, 60, "zipvl:tau=1,bits=16x16,probes=500x0")
    assert kept["nats"] == pytest.approx(found["nats"], abs=1e-5)
    assert kept["payload"] == 2 * found["payload"]  # float32 against 16 bits


def test_the_parts_are_policies_and_one_of_them_says_the_fixed_share():
    names = [part.name for part in PARTS]
    assert len({*names}) == len(names)
    assert ADAPTIVE in names
    for part in PARTS[1:]:
        parse_policy(part.cache.format(ratio=0.5))


def test_the_report_compares_with_the_dense_cache():
    lm = tiny_lm()
    found = {"dense": [measured(lm, TOKENS, 60, None)], "zipvl": [measured(lm, TOKENS, 60, "zipvl:tau=0.8")]}
    header, rows = parts({"parts": found})
    dense, zipvl = (dict(zip(header, row, strict=True)) for row in rows)
    change = math.exp(found["zipvl"][0]["nats"] - found["dense"][0]["nats"]) - 1
    assert zipvl["over dense"] == f"{change:+.1%}"
    assert dense["payload"] == "1/1.00"
    whole = {
        "parts": found, "failures": {"kvpress": "FileNotFoundError: none"}, "share": 0.5, "kvpress": {},
        "settings": {"scored": 30, "prompt": 60, "passages": 1},
        "machine": {"model": "tiny", "processor": "none", "cores": 1, "date": "", "seconds": 1, "versions": {}},
    }  # fmt: skip
    assert "kvpress: not measured: FileNotFoundError: none" in report(whole)


def test_passages_are_spread_over_the_text_and_a_short_text_is_refused(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abcdefghij" * 100)
    settings = CacheSettings(text, 3, 20, 10, None)
    found = passages(tiny_lm(), settings)
    assert [len(each) for each in found] == [30] * 3
    with pytest.raises(UsageError, match="too few for 9 passages of 200"):
        passages(tiny_lm(), CacheSettings(Path(text), 9, 190, 10, None))
    assert torch.tensor(found).shape == (3, 30)
