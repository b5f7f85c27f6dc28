"""Training the tiny coder: its tokens, what it learns from, and what it writes."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from outlay import UsageError
from outlay.models.load import load_model
from outlay.problems import minilist
from outlay.train.coder import END, IGNORED, CoderRecipe, CoderTraining, coder_tokenizer, encode

TINY = {"layers": 1, "hidden": 16, "heads": 2, "inner": 16, "batch": 4}


def silent(phase, done, total):
    pass


def test_each_number_and_each_word_of_the_programs_is_one_token():
    tokenizer = coder_tokenizer()
    assert tokenizer.encode("map + 3 | filter > 12").tokens == [
        "map", "\u0120+", "\u01203", "\u0120|", "\u0120filter", "\u0120>", "\u012012",
    ]  # fmt: skip
    for row in minilist.make(50, 5):
        for text in (row["prompt"], row["answer"]):
            assert tokenizer.decode(tokenizer.encode(text).ids) == text
            assert len(tokenizer.encode(text).ids) == len(text.split()) + text.count("\n")


def test_what_is_learned_is_the_program_with_its_end():
    tokenizer, rows = coder_tokenizer(), minilist.make(4, 1)
    tokens, targets = encode(tokenizer, rows)
    for row, read, learned in zip(rows, tokens, targets, strict=True):
        own = learned != IGNORED
        assert tokenizer.decode(learned[own].tolist(), skip_special_tokens=False) == row["answer"] + END
        written = tokenizer.decode(read.tolist(), skip_special_tokens=False)
        assert written.startswith(f"{row['prompt']}\n{row['answer']}")


def test_the_loss_falls_and_what_is_written_is_a_model(tmp_path):
    training = CoderTraining(CoderRecipe(**TINY, steps=40), tmp_path / "coder")
    held_out = minilist.make(32, 9)
    before = float(training.loss(held_out).detach())
    after = training.fit(silent)
    assert after < 0.8 * before
    model = load_model(tmp_path / "coder", dtype="float32")
    assert model.tokenizer.eos_token_ids
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coder"]


def test_a_training_that_was_stopped_goes_on_and_writes_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("outlay.train.coder.KEEP_EVERY", 3)

    def stop(phase, done, total):
        if done == 8:
            raise KeyboardInterrupt

    recipe = CoderRecipe(**TINY, steps=12)
    CoderTraining(recipe, tmp_path / "whole").fit(silent)
    with pytest.raises(KeyboardInterrupt):
        CoderTraining(recipe, tmp_path / "cut").fit(stop)
    CoderTraining(recipe, tmp_path / "cut").fit(silent)
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "cut")]
    whole, cut = map(load_file, files)
    assert whole.keys() == cut.keys()
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    stamps = []
    for file in files:  # as sets: safetensors writes metadata in an order that it draws
        with safe_open(file, "pt") as held:
            stamps.append(held.metadata())
    assert stamps[0] == stamps[1]


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UsageError, match="hidden must be a multiple of 8"):
        CoderRecipe(hidden=20)
