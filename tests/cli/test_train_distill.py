"""`outlay train distill`: a student of the tiny model, which `outlay run` then runs; refusals."""

from __future__ import annotations

import json

import pytest

SMALL = (
    "--n-encoder-layer", 2, "--n-decoder-layer", 1, "--n-embd", 32, "--qkv-embd", 16, "--n-head", 2, "--n-kv-head", 1,
    "--hidden-dim", 64, "--n-enc", 24, "--n-dec", 12, "--batch", 8, "--micro", 8, "--epochs", 2, "--lr", 0.003,
    "--measure-every", 2, "--quiet",
)  # fmt: skip


@pytest.mark.parametrize("words", [("--targets", "gold"), ("--targets", "student", "--alpha", "1")])
def test_a_student_of_a_loaded_teacher_runs(outlay, tiny, tmp_path, words):
    out = tmp_path / "student"
    status, printed, said = outlay(
        "train", "distill", "--teacher", tiny, "--data", "dates:count=24", "--out", out, *SMALL, *words
    )
    assert (status, printed.strip()) == (0, str(out))
    assert "validation loss" in said
    assert "24 of the pairs" not in said
    assert not (out / "distill.checkpoint").exists()
    status, printed, _ = outlay("run", "3 May 1999", "--model", out, "--method", "greedy", "--max-tokens", 5, "--json")
    assert status == 0
    assert json.loads(printed)["ledger"]["encoder_passes"] == 1
    status, _, said = outlay("train", "distill", "--teacher", tiny, "--data", "dates:count=24", "--out", out, *SMALL)
    assert status == 2
    assert "holds a model already" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--data", "dates:count=4"), "--teacher M"),
        (("--data", "dates:count=4", "--alpha", "0"), "--tokenizer M"),
        (("--data", "nowhere.jsonl", "--alpha", "0", "--tokenizer", "{tiny}"), "can't read nowhere.jsonl"),
        (("--data", "dates:count=4", "--alpha", "2"), "--alpha must be"),
        (("--data", "dates:count=4", "--alpha", "0", "--tokenizer", "{tiny}", "--n-head", "5"), "can't share"),
    ],
)
def test_what_can_not_be_trained_is_refused_in_one_line(refusal, tiny, tmp_path, words, says):
    given = [word.format(tiny=tiny) for word in words]
    status, line = refusal("train", "distill", "--out", tmp_path / "student", "--quiet", *given)
    assert status == 2
    assert says in line
