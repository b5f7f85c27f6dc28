"""Greedy's tokens, whatever drafts: on varied prompts and the default model in float32, alone and in a mixed batch."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

import outlay

PROMPTS = [
    json.loads(line)["prompt"]
    for line in (Path(__file__).parents[2] / "benchmarks" / "data" / "varied.jsonl").read_text().splitlines()
]
TOKENS = 128
METHODS = [
    ("auto", None),
    ("lookup", None),
    ("aded", None),
    ("ppd:rows=12", None),
    ("speculative", None),
    ("speculative", "lookup"),
    ("rsd", None),
    ("rsd:variant=s", None),
    ("spectr", None),
    ("specinfer", None),
    ("auto", "self:skip"),
    ("speculative", "ppd"),
]


@pytest.fixture(scope="module")
def lm(default_path):
    """The default model in float32, on two threads: these tests take minutes."""
    return outlay.load(default_path, dtype="float32", threads=2)


@pytest.fixture(scope="module")
def greedy(lm):
    @cache
    def tokens(place):
        return lm.generate(PROMPTS[place], max_tokens=TOKENS).tokens

    return tokens


def test_there_are_forty_prompts_of_many_kinds():
    assert len(PROMPTS) == len(set(PROMPTS)) == 40
    assert any(not prompt.isascii() for prompt in PROMPTS)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "draft"), METHODS, ids=lambda value: str(value))
def test_alone(lm, greedy, method, draft):
    for place, prompt in enumerate(PROMPTS):
        result = lm.generate(prompt, method=method, draft=draft, max_tokens=TOKENS)
        assert result.tokens == greedy(place), prompt


@pytest.mark.slow
def test_in_a_mixed_batch(lm, greedy):
    """Each of sixteen at a time decodes by another method, and each has a turn at many prompts."""
    expected = [greedy(place) for place in range(len(PROMPTS))]
    for turn in range(2):
        for first in range(0, len(PROMPTS), 16):
            with lm.engine.together():
                handles = {
                    place: lm.submit(PROMPTS[place], method=method, draft=draft, max_tokens=TOKENS)
                    for place in range(first, min(first + 16, len(PROMPTS)))
                    for method, draft in [METHODS[(place + 7 * turn) % len(METHODS)]]
                }
            for place, handle in handles.items():
                assert handle.result().tokens == expected[place], (METHODS[(place + 7 * turn) % len(METHODS)], place)
