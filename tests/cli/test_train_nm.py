"""`outlay train nm`: a folder that runs, whose weights are N:M; the same after a stop; and what it refuses."""

from __future__ import annotations

import json
import random
import re
import string

import pytest
import torch
from safetensors.torch import load_file

from outlay.models.load import load_model
from outlay.shrink.nm import NMSparse, Pattern, violations
from outlay.shrink.nm import language_model as nm_module
from outlay.shrink.nm.language_model import SparseModelRecipe, SparseTrainer, TrainedDecoder

SHORT = ("--steps", 8, "--batch", 2, "--context", 16, "--measure", 3, "--quiet")


class StopError(Exception):
    pass


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Letters of which each is followed by one of three."""
    draw, letters = random.Random(0), string.ascii_lowercase
    after = {letter: draw.sample(letters, 3) for letter in letters}
    written = ["a"]
    for _ in range(4000):
        written.append(draw.choice(after[written[-1]]))
    path = tmp_path_factory.mktemp("text") / "letters.txt"
    path.write_text("".join(written))
    return path


@pytest.fixture
def train(outlay, tiny, text, tmp_path):
    """Trains the tiny model; returns the folder and what was written on stderr."""

    def run(*words, name="sparse"):
        folder = tmp_path / name
        status, out, err = outlay("train", "nm", "--model", tiny, "--data", text, "--out", folder, *SHORT, *words)
        assert (status, out.strip()) == (0, str(folder))
        return folder, err

    return run


def test_the_folder_runs_and_its_feed_forward_layers_are_n_to_m(train, outlay):
    folder, err = train("--pattern", "1:8")
    weights = load_file(folder / "model.safetensors")
    sparse = {name for name, weight in weights.items() if ".mlp." in name and violations(weight, Pattern(1, 8)) == 0}
    assert len(sparse) == 6
    assert violations(weights["model.layers.0.self_attn.q_proj.weight"], Pattern(1, 8)) > 0
    status, out, _ = outlay("run", "Hello", "--model", folder, "--max-tokens", 8, "--json", "--method", "greedy")
    assert status == 0
    assert len(json.loads(out)["tokens"]) == 8
    assert "binary mask" in err
    assert "nats a token on held-out text; dense:" in err


def test_packed_layers_compute_the_same_and_pass_the_check(train, outlay):
    folders = [train("--pattern", "1:8", *words, name=name)[0] for name, words in (("a", ()), ("b", ("--packed",)))]
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    outs = [load_model(folder, dtype="float32").decoder.layers[1].mlp(x) for folder in folders]
    assert torch.equal(*outs)
    plain, packed = (load_file(folder / "model.safetensors") for folder in folders)
    assert (
        packed["model.layers.0.mlp.up_proj.nm_values"].numel() == plain["model.layers.0.mlp.up_proj.weight"].numel() / 8
    )
    status, out, _ = outlay("shrink", "--check", folders[1])
    assert (status, out.strip()) == (0, f"{folders[1]}: 6 matrices, none of them wrong")


def test_the_report_shows_the_binary_mask_beside_the_decayed_one(train):
    folder, _ = train("--pattern", "1:8", "--recipe", "mdgf-exp", "--finetune-frac", 0.25)
    report = json.loads((folder / "report.json").read_text())
    history = report["history"]
    assert [row["step"] for row in history] == [0, 3, 6, 8]
    assert history[0]["beta"] == 1.0
    assert history[0]["decayed"] == report["dense"] != history[0]["binary"]  # nothing is decayed yet
    assert history[-1]["beta"] == 0.0
    assert history[-1]["binary"] == pytest.approx(history[-1]["decayed"], abs=1e-6)


def test_a_training_that_was_stopped_ends_with_the_same_bytes(train, outlay, tiny, text, tmp_path, monkeypatch):
    whole, _ = train("--pattern", "2:4", name="whole")
    stopped, step = tmp_path / "stopped", nm_module.SparseTrainer.batch

    def stopping(self, at):
        if at == 5:
            raise StopError
        return step(self, at)

    monkeypatch.setattr(nm_module.SparseTrainer, "batch", stopping)
    words = ("train", "nm", "--model", tiny, "--data", text, "--pattern", "2:4", *SHORT)
    assert outlay(*words, "--out", stopped)[0] == 1
    assert not stopped.exists()
    monkeypatch.setattr(nm_module.SparseTrainer, "batch", step)
    again, _ = train("--pattern", "2:4", name="stopped")
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    reports = [json.loads((folder / "report.json").read_text()) for folder in (whole, again)]
    assert reports[0] == reports[1]
    assert not (tmp_path / "stopped.work").exists()


def test_training_wins_back_what_pruning_costs(tiny, text, tmp_path):
    def trained(model, recipe):
        tokens = torch.tensor(model.tokenizer.encode(text.read_text()))
        how = SparseModelRecipe(NMSparse(1, 8, recipe=recipe), steps=80, batch=4, context=32, lr=1e-2, measure=80)
        trainer = SparseTrainer(model, how, tokens)
        trainer.fit(None, lambda phase, done, total: None)
        return trainer

    trained(load_model(tiny, dtype="float32"), "dense").save(tmp_path / "dense")
    trainer = trained(load_model(tmp_path / "dense", dtype="float32"), "mdgf-exp")
    assert trainer.history[0].binary > trainer.dense + 0.05
    assert trainer.won_back > 0.5
    assert trainer.flops == pytest.approx(trainer.handle.ledger().flops, rel=1e-9)


def test_the_parameters_compute_what_the_model_does(tiny):
    model = load_model(tiny, dtype="float32")
    net = TrainedDecoder(model)
    tokens = torch.arange(60, 75)
    with torch.no_grad():
        logits = net(torch.stack([tokens, tokens.flip(0)]))
    expected = []

    def attend(layer, q, k, v):
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
        return torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, is_causal=True).transpose(0, 1)

    from outlay.train.frozen import FrozenDecoder

    frozen = FrozenDecoder(model)
    for row in (tokens, tokens.flip(0)):
        hidden_states = frozen.forward(frozen.embed(row), torch.arange(15), attend)
        expected.append(hidden_states @ frozen.lm_head.T)
    assert torch.allclose(logits, torch.stack(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pattern", "2/4"), "a pattern is written N:M"),
        (("--pattern", "5:4"), "keeps 1 to M"),
        (("--pattern", "1:24"), r"pattern 1:24 doesn't fit, groups of 24 don't divide 32 input"),
        (("--recipe", "mdgf"), "did you mean 'mdgf-exp'"),
        (("--where", "ffn"), "no linear layer or convolution of this module is 'ffn'"),
        (("--context", 4000), "tokens; a training with passages of 4000 needs"),
        (("--data", "absent.txt"), "can't read absent.txt"),
    ],
)
def test_what_can_not_be_trained_is_refused_in_one_line(refusal, tiny, text, tmp_path, words, said):
    status, line = refusal("train", "nm", "--model", tiny, "--data", text, "--out", tmp_path / "x", *SHORT, *words)
    assert status == 2
    assert re.search(said, line)
