"""VPTQ's tuning by layer: indices stay, the layer's output comes nearer to the float layer's."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import outlay
from outlay import cli, shrink
from outlay.errors import UsageError
from outlay.models.forms.vptq import Codebook
from outlay.models.load import open_model
from outlay.prompt_logits import logits_from
from outlay.shrink import Tuning
from outlay.shrink.calibration import Hidden
from outlay.shrink.run import _floats
from outlay.shrink.source import Source

REASONER = "outlay/tiny-reasoner"
METHOD = "vptq:v=8,k=16,k_res=0"
TEXTS = [[token % 500 for token in range(start, start + 40)] for start in range(0, 400, 40)]
TUNING = Tuning(30, 1e-3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same model with codebooks as k-means left them, and tuned."""
    place = tmp_path_factory.mktemp("tuned")
    for name, tune in (("plain", None), ("tuned", TUNING)):
        shrink.run(REASONER, METHOD, place / name, calib=TEXTS, tune=tune)
    return place / "plain", place / "tuned"


def test_a_block_in_plain_torch_gives_what_the_layer_gives():
    opened = open_model(REASONER)
    source, hidden = Source(opened), Hidden(opened.builder, TEXTS)
    for index in range(2):
        layer = opened.builder.layer(index)
        after = hidden.after(index, layer)
        block = hidden.block(index, layer, after, *_floats(index, source, {}), {})
        for batch in block.batches:
            found = block.output(batch, {}, block.norms)
            assert float((found - batch.targets).norm() / batch.targets.norm()) < 0.01  # the layer is held in 8 bits
        hidden.advance(after)


def test_tuning_keeps_the_indices_and_brings_every_layer_nearer_to_the_float_one(folders):
    plain, tuned = ({}, {})
    for folder, found in zip(folders, (plain, tuned), strict=True):
        for file in folder.glob("*.safetensors"):
            found |= load_file(file)
    assert set(plain) == set(tuned)
    indices = [name for name in plain if name.endswith("indices")]
    assert indices
    assert all(torch.equal(plain[name], tuned[name]) for name in indices)
    entries = [name for name in plain if name.endswith("centroids.weight")]
    assert any(not torch.equal(plain[name], tuned[name]) for name in entries)
    rows = json.loads((folders[1] / "report.json").read_text())["rows"]
    assert all(row["layer_change"] < 0.7 for row in rows)


def test_a_tuned_model_predicts_what_it_was_calibrated_with_more_as_the_original_does(folders):
    original, plain, tuned = (
        torch.cat([logits_from(lm, text, 0) for text in TEXTS]).log_softmax(-1)
        for lm in (outlay.load(source, dtype="float32") for source in (REASONER, *folders))
    )
    losses = [float((original.exp() * (original - found)).sum(-1).mean()) for found in (plain, tuned)]
    print(f"KL untuned and tuned: {losses}")
    assert losses[1] < 0.95 * losses[0]


def test_tuned_entries_lie_on_one_grid_and_the_file_counts_as_before(folders):
    assert all(not row["wrong"] for row in shrink.check(folders[1]))
    reports = [json.loads((folder / "report.json").read_text()) for folder in folders]
    assert reports[0]["bits"] == reports[1]["bits"]
    assert 0 <= reports[1]["file_bits"] - reports[0]["file_bits"] < 0.03  # norms in float32
    lm = outlay.load(folders[1])
    parts = {part.format for each in lm.model.decoder.layers for part in getattr(each.qkv, "packed", each.qkv).parts}
    assert parts == {"codebook"}


def test_the_gradient_of_entries_is_the_same_each_time_at_two_threads():
    draw = torch.Generator().manual_seed(0)
    index = torch.randint(16, (64, 2048), generator=draw)
    wanted = torch.randn(64 * 8, 2048, generator=draw)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = []
        for _ in range(8):
            entries = torch.ones(16, 8, requires_grad=True)
            (Codebook(entries, None, index, None).columns(64 * 8) * wanted).sum().backward()
            found.append(entries.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(grad, found[0]) for grad in found)


def test_a_run_that_was_stopped_goes_on_to_the_same_folder(folders, tmp_path):
    seen = []

    def stop(rows):
        seen.append(rows)
        if len(seen) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shrink.run(REASONER, METHOD, tmp_path / "again", calib=TEXTS, tune=TUNING, on_layer=stop)
    shrink.run(REASONER, METHOD, tmp_path / "again", calib=TEXTS, tune=TUNING)
    for file in folders[1].glob("*.safetensors"):
        expected, found = load_file(file), load_file(tmp_path / "again" / file.name)
        assert set(expected) == set(found)
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_later_layers_read_tuned_norms_where_moments_are_of_shrunk_layers(tmp_path):
    report = shrink.run(
        REASONER, METHOD, tmp_path / "a", calib=TEXTS[:3], only="mlp", sequential=True, tune=Tuning(5, 1e-3)
    )
    assert {row["part"] for row in report.rows} <= {"gate", "up", "gate_up", "down"}
    assert not any(row["wrong"] for row in shrink.check(tmp_path / "a"))


def test_what_has_no_codebooks_is_not_tuned(tmp_path, capsys):
    with pytest.raises(UsageError, match="gptq has no codebooks to tune"):
        shrink.run(REASONER, "gptq:group=32", tmp_path / "a", calib=TEXTS[:1], tune=Tuning(1))
    with pytest.raises(UsageError, match="lr of a tuning"):
        Tuning(1, 0.0)
    words = ["shrink", REASONER, "--method", "gptq:group=32", "--out", str(tmp_path / "b"), "--tune", "0"]
    assert cli.main(words) == 2
    assert "--tune" in capsys.readouterr().err
