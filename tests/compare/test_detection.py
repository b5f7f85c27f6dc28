"""Detectors side by side on the same pictures: what is measured, what is drawn, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from outlay import cli
from outlay.compare.detection import PictureComparison, PictureDeclaration, contenders
from outlay.compare.session import compare
from outlay.errors import UsageError
from outlay.vision import detect
from outlay.vision.detect.datasets import Dataset, Example
from outlay.vision.detect.deimv2 import Detector
from outlay.vision.detect.detections import Detections, cost_of
from outlay.vision.detect.verdicts import verdicts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    detector = Detector(detect.size_of("atto", classes=2, queries=10)).eval()
    with torch.no_grad():
        for head in (*detector.decoder.dec_bbox_head, detector.decoder.enc_bbox_head):
            head.layers[-1].weight.normal_(0, 0.3)
        detector.decoder.enc_score_head.weight.normal_(0, 1)
        for head in detector.decoder.dec_score_head:
            head.bias.fill_(0.2)
    folder = tmp_path_factory.mktemp("model") / "m"
    detect.save(folder, detect.Loaded(detector, ("a", "b"), 64))
    return folder


@pytest.fixture
def data(model, monkeypatch):
    """Pictures whose boxes are what the detector finds after its second layer."""
    monkeypatch.setattr("outlay.vision.detect.evaluate.RESAMPLES", 5)
    draw, loaded = np.random.default_rng(0), detect.load(model)
    pictures = [draw.integers(0, 255, (50, 60, 3), dtype=np.uint8) for _ in range(3)]
    seen = [detect.detect(loaded, [pixels], threshold=0, layers=2)[0] for pixels in pictures]
    made = Dataset("made", ("a", "b"), [
        Example(f"p{number}", pixels, found.boxes.numpy()[:3], found.labels.numpy()[:3], np.zeros(3, dtype=bool))
        for number, (pixels, found) in enumerate(zip(pictures, seen, strict=True))
    ])  # fmt: skip
    monkeypatch.setattr("outlay.compare.detection.read_dataset", lambda source: made)
    return made


def declared(model, **options):
    methods = tuple(f"deimv2:model={model},layers={layers}" for layers in (2, 1))
    return PictureComparison(PictureDeclaration(methods, "made", **{"repeats": 2, **options}))


def test_a_comparison_measures_each_picture_in_turn_and_goes_on_where_it_was(model, data, tmp_path):
    found = compare(declared(model), tmp_path / "out")
    two, one = found["contenders"]
    assert two["quality"]["mean"] > 0.9  # not 1: what is found beside the truth in one picture beats it in another
    assert one["quality"]["mean"] < two["quality"]["mean"]
    assert two["quality"]["low"] <= two["quality"]["mean"] <= two["quality"]["high"]
    loaded = detect.load(model)
    assert two["entries"]["flops"]["median"] == cost_of(loaded, 2, 10).flops
    assert one["entries"]["flops"]["median"] == cost_of(loaded, 1, 10).flops
    assert one["ratios"]["flops"]["median"] == pytest.approx(
        cost_of(loaded, 1, 10).flops / cost_of(loaded, 2, 10).flops
    )
    assert set(two["ratios"]["seconds"]) == {"median", "low", "high"}
    rows = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 3 * 2
    firsts = [rows[place]["method"] for place in range(0, len(rows), 2)]
    assert len(set(firsts)) == 2  # neither is always the first
    truth = found["pictures"][0]
    assert len(truth["truth"]) == 3
    assert truth["answers"][0]["found"] == [True] * 3
    page = (tmp_path / "out" / "report.html").read_text()
    assert "report_pictures" not in page
    assert "data:image/jpeg;base64," in page
    assert (tmp_path / "out" / "pareto.svg").exists()
    before = (tmp_path / "out" / "runs.jsonl").read_bytes()
    again = compare(declared(model), tmp_path / "out")
    assert (tmp_path / "out" / "runs.jsonl").read_bytes() == before
    assert again["contenders"] == found["contenders"]
    with pytest.raises(UsageError, match="holds another comparison"):
        compare(declared(model, repeats=3), tmp_path / "out")


def test_budgets_make_contenders_of_their_own(model, data):
    loaded = detect.load(model)
    cap = cost_of(loaded, 1, 10).flops
    every = contenders(PictureDeclaration((f"deimv2:model={model}",), "made", budgets=("", f"flops={cap}")))
    assert [each.budget for each in every] == ["", f"flops={cap}"]
    spent, _ = every[1].answer(data.examples[0].pixels())
    assert spent["flops"] == cost_of(loaded, spent["layers"], spent["queries"]).flops <= cap
    assert spent["queries"] < 10
    with pytest.raises(UsageError, match="nothing of this detector fits the budget"):
        contenders(PictureDeclaration((f"deimv2:model={model}",), "made", budgets=("flops=1",)))


def test_verdicts_tell_hits_false_alarms_and_what_was_missed():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]], dtype=np.float32)
    example = Example("x", np.zeros((60, 60, 3), np.uint8), boxes, np.array([0, 1, 1]), np.zeros(3, bool))
    seen = Detections(
        torch.tensor([[0.0, 0, 10, 9], [1, 0, 10, 10], [20, 20, 30, 30], [41, 40, 50, 50]]),
        torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 0, 1]), ("a", "b"),
    )  # fmt: skip
    told = verdicts(seen, example)
    assert told.hits == (
        True,
        False,
        False,
        True,
    )  # the second's box is taken, the third's is of another class
    assert told.found == (True, False, True)
    assert verdicts(seen, example, {0: 1, 1: 0}).hits == (False, False, True, False)


def test_the_command_and_its_refusals(model, data, tmp_path, capsys):
    words = ["compare", "--task", "detect", "--images", "made", "--out", str(tmp_path / "out"), "--repeat", "1"]
    assert cli.main([*words, "--methods", f"deimv2:model={model},layers=1|2", "--limit", "2"]) == 0
    shown = capsys.readouterr().out
    assert "pictures/s" in shown
    assert "2 pictures, 1 seed, 1 repeat; medians over the pictures" in shown
    again = [
        "compare",
        "--task",
        "detect",
        "--from",
        str(tmp_path / "out"),
        "--out",
        str(tmp_path / "again"),
        "--quiet",
    ]
    assert cli.main([*again, "--quiet"]) == 0
    assert (tmp_path / "again" / "prompts.jsonl").read_bytes() == (tmp_path / "out" / "prompts.jsonl").read_bytes()
    assert len((tmp_path / "again" / "results.csv").read_text().splitlines()) == 1 + 2 * 2
    for wrong, message in (
        (["--methods", "greedy"], "pictures are compared under deimv2:model=M, not 'greedy'"),
        (["--methods", "deimv2:layers=1"], "say which detector 'deimv2:layers=1' is"),
        (["--methods", f"deimv2:model={model},size=x"], "size of deimv2 must be a whole number from 1, not 'x'"),
        (["--methods", f"deimv2:model={model},depth=1"], "deimv2 has the options model, layers"),
        (["--methods", f"deimv2:model={model},layers=9"], "the detector has 3 layers; run 1 to 3, not 9"),
        (["--methods", f"deimv2:model={model}", "--metric", "coca"], "no metric 'coca' of pictures"),
        (["--methods", f"deimv2:model={model}", "--draft", "x"], "--draft is for texts"),
        ([], "--methods is missing"),
    ):  # fmt: skip
        assert cli.main([*words[:-4], "--out", str(tmp_path / "other"), *wrong]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["compare", "--images", "made", "--methods", "greedy", "--out", str(tmp_path / "x")]) == 2
    assert "--images are compared with --task detect" in capsys.readouterr().err
