"""Training a model that fills masks: what it learns from, what is masked, what it writes, and resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from outlay import UsageError
from outlay.models.load import load_model
from outlay.problems import ambiguous, noisy
from outlay.train.diffusion import DiffusionRecipe, DiffusionTraining, llada_name, masks
from outlay.train.masked_data import read_masked_data

TINY = {"layers": 1, "hidden": 16, "heads": 2, "inner": 16, "batch": 4, "steps": 4}


def silent(phase, done, total):
    pass


def trained(folder, source, progress=silent, **changes):
    recipe = DiffusionRecipe(source, **TINY | changes)
    training = DiffusionTraining(recipe, read_masked_data(source, recipe.context, recipe.vocabulary), folder)
    return training, training.fit(progress)


def test_each_text_has_a_uniform_number_of_masks_all_of_them_in_its_answer():
    answer = torch.ones(6000, 5, dtype=torch.bool)
    answer[:, 0] = False
    drawn = masks(answer, torch.Generator().manual_seed(0))
    assert not (drawn & ~answer).any()
    shares = drawn.sum(1).bincount(minlength=5)[1:] / len(drawn)
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=4 * (0.25 * 0.75 / 6000) ** 0.5)


def test_the_model_is_one_of_llada_that_reads_what_was_trained(tmp_path):
    training, bound = trained(tmp_path, "ambiguous", context=29)
    assert bound > 0
    model = load_model(tmp_path, dtype="float32")
    assert model.writes_canvas
    assert model.decoder.config.max_positions == 29
    weights = load_file(tmp_path / "model.safetensors")
    assert set(weights) == {llada_name(name) for name, _ in training.net.named_parameters()}
    assert not (tmp_path / "diffusion.checkpoint").exists()
    from outlay import LM
    from outlay.engine.engine import Engine

    with torch.no_grad():
        for parameter in training.net.parameters():
            parameter.copy_(parameter.bfloat16().float())
        prompt = model.tokenizer.render_chat([{"role": "user", "content": "KBAC"}])
        logits = training.net.logits(training.net(torch.tensor([prompt + [training.mask] * 2])))[0, len(prompt) :]
    logits[:, training.mask] = -torch.inf
    result = LM(model, Engine()).generate("KBAC", method="llada:steps=1", max_tokens=2, logprobs=1, ignore_eos=True)
    expected = logits.log_softmax(-1).max(-1)
    assert result.tokens == expected.indices.tolist()
    assert [each.logprob for each in result.logprobs] == pytest.approx(expected.values.tolist(), abs=1e-4)


def test_a_training_that_was_stopped_ends_with_the_same_weights(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(phase, done, total):
        if done == 3:
            raise Stop

    monkeypatch.setattr("outlay.train.diffusion.KEEP_EVERY", 2)
    trained(tmp_path / "whole", "noisy")
    with pytest.raises(Stop):
        trained(tmp_path / "halves", "noisy", stop)
    seen = []
    trained(tmp_path / "halves", "noisy", lambda phase, done, total: seen.append(done))
    assert seen == [3, 4]
    whole, halves = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_answers_of_a_file_are_padded_with_ends_and_prompts_are_never_masked(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n} + 1", "answer": str(n + 1)}) + "\n" for n in range(60)))
    data = read_masked_data(str(file), 12, 0)
    batch = data.batch(8, 0, 0)
    end = data.tokenizer.token_to_id("<end>")
    assert 5 < batch.seen.sum(1).min() < batch.seen.sum(1).max() <= 12
    for tokens, answer, seen in zip(batch.tokens, batch.answer, batch.seen, strict=True):
        text = data.tokenizer.decode(tokens[~answer & seen].tolist())
        written = data.tokenizer.decode(tokens[answer & (tokens != end)].tolist())
        assert text.endswith("+ 1\n")
        assert int(written) == int(text.split(" ")[0]) + 1
    assert torch.equal(data.batch(8, 0, 0).tokens, batch.tokens)
    assert not torch.equal(data.batch(8, 1, 0).tokens, batch.tokens)
    assert len(data.held_out().tokens) == 1
    with pytest.raises(UsageError, match="--context must be as many"):
        read_masked_data(str(file), 5, 0)


def test_a_text_does_not_see_the_padding_behind_it(tmp_path):
    training, _ = trained(tmp_path, "ambiguous", context=29)
    tokens = torch.tensor([[65, 66, 67, 68, 69, 70], [65, 66, 67, 68, 11, 12]])
    seen = torch.tensor([[True] * 4 + [False] * 2] * 2)
    with torch.no_grad():
        padded, alone = training.net(tokens, seen), training.net(tokens[:, :4])
    torch.testing.assert_close(padded[:, :4], alone)


def test_a_text_is_cut_into_chunks_with_a_vocabulary_of_its_own(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("the tide came in and the tide went out\n" * 100)
    data = read_masked_data(str(file), 16, 300)
    assert data.tokenizer.get_vocab_size() <= 300
    assert data.batch(4, 0, 0).answer.all()
    with pytest.raises(UsageError, match="fewer than a context"):
        read_masked_data(str(file), 100_000, 0)


def test_what_is_no_data_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"there is no file listz.*did you mean"):
        read_masked_data("listz", 0, 0)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n')
    with pytest.raises(UsageError, match=r'line 1 .* must have "prompt" and "answer"'):
        read_masked_data(str(file), 0, 0)


def test_dictionaries_tell_phrases_from_mixtures_of_them():
    row = ambiguous.make(1, 0)[0]
    dictionary = ambiguous.DICTIONARY
    assert all(slot >= 0 for slot in dictionary.slots(row["prompt"], row["answer"]))
    first, second = (dictionary.phrases[row["prompt"][0]][place] for place in (0, 1))
    assert dictionary.slots(row["prompt"][0], first[:3] + second[3:]) == [-1]
    clean = sum(slot >= 0 for each in noisy.make(200, 0) for slot in noisy.DICTIONARY.slots(*each.values()))
    assert 0.3 < clean / 800 < 0.55  # (0.95 0.9 0.85 0.8 0.9 0.75), and a random letter may be the right one


def test_a_model_is_not_overwritten(tmp_path):
    from outlay import cli

    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["train", "diffusion", "--data", "lists", "--out", str(tmp_path)]) == 2
    assert Path(tmp_path / "config.json").read_text() == "{}"
