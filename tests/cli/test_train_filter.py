"""`outlay train filter`: what it fits is found by `outlay run`, and refused in one line where it can't be fitted."""

from __future__ import annotations

import json

import pytest

WORDS = ("train", "filter", "--model", "tiny-ambiguous", "--length", 24, "--epochs", 5)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "cache"))


def test_a_filter_is_fitted_found_and_decoded_with(outlay, refusal, tmp_path):
    run = ("run", "KBAC", "--model", "tiny-ambiguous", "--method", "learn2pd", "--max-tokens", 24)
    status, line = refusal(*run)
    assert status == 2
    assert "`outlay train filter --model tiny-ambiguous` trains one" in line
    status, out, err = outlay(*WORDS, "--prompts", "ambiguous:count=12,seed=3")
    assert (status, out.count("\n")) == (0, 1)
    assert out.strip().endswith(".filter.safetensors")
    assert "24.0 one token a pass" in err
    assert "held-out texts that stay the same" in err
    assert not list(tmp_path.glob("**/*.work"))
    status, out, _ = outlay(*run, "--json")
    assert (status, len(json.loads(out)["tokens"])) == (0, 24)
    assert "is there already" in refusal(*WORDS, "--prompts", "ambiguous:count=12")[1]


def test_the_published_recipe_sets_its_own_score(outlay, tmp_path):
    out = tmp_path / "published.safetensors"
    status, _, err = outlay(*WORDS, "--prompts", "ambiguous:count=12,seed=3", "--published", "--out", out)
    assert status == 0
    assert "accept 0.96, as published" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "say what the model is asked: --prompts FILE"),
        (("--prompts", "ambiguous:count=12", "--published", "--agreement", 0.9), "leave out --agreement"),
        (("--prompts", "ambiguous:count=3"), "10 prompts or more"),
        (("--prompts", "ambiguous:count=12", "--length", 4000), "the canvas is longer than the context"),
        (("--prompts", "ambiguous:count=12", "--agreement", 0), "--agreement must be a number, above 0"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_a_line(refusal, words, told):
    status, line = refusal(*WORDS, *words)
    assert status == 2
    assert told in line
