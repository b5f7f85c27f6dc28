"""Training of detectors: seeded, resumed to the same weights, stopped where a loss is no number; changed pictures."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from outlay import cli
from outlay.errors import FailureError, UsageError
from outlay.train.detect import DetectorRecipe, Training, recipe_for, training, with_classes
from outlay.train.detect.augment import (
    Sample,
    Strength,
    blended,
    cropped,
    distorted,
    flipped,
    mixed,
    mosaic,
    moved,
    sample,
    zoomed_out,
)
from outlay.train.detect.matching import Targets
from outlay.train.detect.recipe import PUBLISHED
from outlay.vision import detect
from outlay.vision.detect.boxes import corners
from outlay.vision.detect.datasets import Dataset, Example, read_dataset
from outlay.vision.detect.deimv2 import Detector
from outlay.vision.detect.detections import at_side
from outlay.vision.detect.scenes import scene, scenes

TINY = {"size": "atto", "side": 64, "queries": 15, "batch": 2, "augment": "light", "denoising": 6, "lr": 1e-3}


def marked(count=6, classes=2):
    """Dark pictures, each with two bright rectangles that fill their boxes."""
    draw, examples = np.random.default_rng(0), []
    for place in range(count):
        pixels = np.full((60, 80, 3), 20, dtype=np.uint8)
        boxes = np.array([[5, 8, 30, 40], [40, 20, 70, 50]], dtype=np.float32) + draw.integers(0, 5)
        for left, top, right, bottom in boxes.astype(int):
            pixels[top:bottom, left:right] = 220
        examples.append(Example(str(place), pixels, boxes, np.array([place % classes, 1]), np.zeros(2, dtype=bool)))
    return Dataset("marked", tuple("ab"[:classes]), examples)


def fills(made, box):
    """How bright the inside of a box is, and a rim of 3 pixels around it that lies in the picture."""
    left, top, right, bottom = (round(float(edge)) for edge in box)
    grown = made.pixels[max(0, top - 3) : bottom + 3, max(0, left - 3) : right + 3, 0].astype(float)
    inside = made.pixels[top + 1 : bottom - 1, left + 1 : right - 1, 0].astype(float)
    return inside.mean(), (grown.sum() - made.pixels[top:bottom, left:right, 0].sum()) / max(1, grown.size)


@pytest.fixture
def picture():
    example = marked().examples[0]
    return Sample(example.picture, example.boxes, example.labels)


def test_boxes_follow_what_is_done_to_pictures(picture):
    draw = np.random.default_rng(1)
    for made in (flipped(picture), zoomed_out(picture, draw), cropped(picture, draw), moved(picture, 0, (3, -4), 1.2)):
        assert len(made.boxes)
        for box in made.boxes:
            inside, rim = fills(made, box)
            assert inside > 190
            assert rim < 60
    turned = moved(picture, 10, (0, 0), 1.0)
    for before, after in zip(picture.boxes, turned.boxes, strict=True):
        assert (after[2:] - after[:2] > before[2:] - before[:2]).all()
        assert fills(turned, after)[0] > 150
    joined = mosaic([picture] * 4, 30, np.random.default_rng(0))
    assert joined.pixels.shape == (60, 80, 3)
    assert len(joined.boxes) > 3
    assert distorted(picture.pixels, draw).shape == picture.pixels.shape


def test_a_stage_without_changes_only_stretches_and_small_boxes_are_left_out(picture):
    draw = np.random.default_rng(0)
    made = sample(lambda place: picture, 1, 0, 32, 0, Strength(flip=False), draw)
    assert made.pixels.shape == (32, 32, 3)
    assert np.allclose(made.boxes, picture.boxes * np.array([32 / 80, 32 / 60] * 2), atol=1e-4)
    assert len(sample(lambda place: picture, 1, 0, 32, 11, Strength(flip=False), draw).boxes) == 1


def test_mixup_adds_up_pictures_and_keeps_the_boxes_of_both():
    pictures = torch.stack([torch.full((3, 4, 4), value) for value in (0.0, 1.0)])
    targets = Targets(torch.rand(3, 4), torch.tensor([0, 1, 1]), (1, 2))
    made, found = mixed(pictures, targets, 0.45)
    assert torch.allclose(made[:, 0, 0, 0], torch.tensor([0.55, 0.45]))
    assert found.counts == (3, 3)
    assert torch.equal(found.labels, torch.tensor([0, 1, 1, 1, 1, 0]))


def test_copy_blend_lays_objects_half_over_others_and_their_boxes_are_their_own():
    pictures = torch.zeros(2, 3, 64, 64)
    pictures[0, :, 20:36, 12:36] = 1.0
    targets = Targets.of([torch.tensor([[24 / 64, 28 / 64, 24 / 64, 16 / 64]]), torch.zeros(0, 4)],
                         [torch.tensor([3]), torch.zeros(0, dtype=torch.int64)])  # fmt: skip
    made, found = blended(pictures, targets, np.random.default_rng(0))
    assert found.counts == (2, 1)
    assert found.labels.tolist() == [3, 3, 3]
    box = corners(found.boxes[2]) * 64
    left, top, right, bottom = (round(float(edge)) for edge in box)
    assert (right - left, bottom - top) == (24, 16)
    assert made[1, 0, top:bottom, left:right].min() >= 0.45
    assert made[1, 0, top:bottom, left:right].max() <= 0.55
    assert made[1].sum() == pytest.approx(float(made[1, :, top:bottom, left:right].sum()))
    empty = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (0, 0))
    assert torch.equal(blended(pictures, empty, np.random.default_rng(0))[0], pictures)


def test_scenes_are_always_alike_and_their_boxes_are_tight_and_apart():
    for place in range(8):
        one, other = scene("test", place), scene("test", place)
        assert np.array_equal(one.picture, other.picture)
        assert np.array_equal(one.boxes, other.boxes)
        assert 1 <= len(one.boxes) <= 4
        for first in range(len(one.boxes)):
            for second in range(first):
                a, b = one.boxes[first], one.boxes[second]
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert not np.array_equal(scene("train", 0).picture, scene("test", 0).picture)
    with pytest.raises(UsageError, match="train and test, not 'val'"):
        scenes("val")


def test_stages_and_rates_are_the_published_ones():
    recipe = DetectorRecipe("s", steps=1320, batch=32)
    assert recipe.strength(0) == Strength(scales=True)
    assert recipe.strength(100) == Strength(0.5, 0.5, 0.5, colours=True, zoom=True, scales=True)
    assert recipe.strength(700) == Strength(0.0, 0.0, 0.5, colours=True, zoom=True, scales=True)
    assert recipe.strength(1200) == Strength()
    assert [recipe.late(step) for step in (999, 1000)] == [False, True]
    assert sorted(set(recipe.sides())) == list(range(480, 801, 32))
    assert recipe.sides().count(640) == 20
    rates = [recipe.lr_at(step) for step in range(recipe.steps)]
    assert max(rates) == 5e-4 == rates[100] == rates[639]
    assert rates[0] < rates[40] / 4
    assert rates[-1] == pytest.approx(2.5e-4)
    assert rates[640:] == sorted(rates[640:], reverse=True)
    lite = DetectorRecipe("atto", steps=500, batch=32)
    assert lite.lr_at(100) == pytest.approx(1e-3)
    assert not lite.published.terms.local
    assert lite.strength(100).mosaic == 0.3
    assert lite.strength(100).mixup == 0
    assert lite.strength(100).copyblend == 0
    assert set(PUBLISHED) == set(detect.SIZES)
    digits = recipe_for("digits")
    assert (digits.side, digits.queries, recipe_for("digits", side=64, queries=15).side) == (128, 60, 64)


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "KEPT_EVERY", 2)
    recipe, data = replace(DetectorRecipe(), **TINY, steps=6), marked()
    whole = Training(recipe, data, None, tmp_path / "whole").fit()

    def killed(phase, done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Training(recipe, data, None, tmp_path / "halved").fit(killed)
    steps = []
    again = Training(recipe, data, None, tmp_path / "halved").fit(lambda phase, done, total: steps.append(done))
    assert steps == [5, 6]
    for one, other in zip(
        whole.loaded.detector.state_dict().values(), again.loaded.detector.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    other = Training(replace(recipe, seed=1), data, None, tmp_path / "other").fit()
    assert any(not torch.equal(*pair) for pair in zip(
        whole.loaded.detector.parameters(), other.loaded.detector.parameters(), strict=True))  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        Training(recipe, data, None, tmp_path / "third").fit(killed)
    with pytest.raises(UsageError, match="another recipe"):
        Training(replace(recipe, lr=2e-3), data, None, tmp_path / "third").fit()


def test_a_number_that_is_none_stops_with_the_layers_name_and_keeps_the_last_good_weights(tmp_path):
    run = Training(replace(DetectorRecipe(), **TINY, steps=6), marked(), None, tmp_path / "out")

    def poison(phase, done, total):
        if done == 3:
            with torch.no_grad():
                run.detector.encoder.fpn_block.cv1.conv.weight[0, 0] = math.nan

    with pytest.raises(FailureError, match=r"step 4: the output of encoder\.fpn_block\.cv1\.conv is not finite"):
        run.fit(poison)
    kept = detect.load(tmp_path / "out")
    assert all(torch.isfinite(tensor).all() for tensor in kept.detector.state_dict().values())


def test_time_plans_the_steps_and_what_goes_on_keeps_the_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "_step_seconds", lambda self: 2.0)
    recipe = replace(DetectorRecipe(), **TINY)
    assert Training(recipe, marked(), None, tmp_path / "out", minutes=1).recipe.steps == 29
    monkeypatch.setattr(Training, "_step_seconds", lambda self: 1.0)
    assert Training(recipe, marked(), None, tmp_path / "out", minutes=1).recipe.steps == 29
    assert Training(recipe, marked(), None, tmp_path / "out", minutes=2).recipe.steps == 116


def test_other_classes_make_new_heads_of_scores_and_the_rest_is_kept():
    torch.manual_seed(0)
    detector = Detector(detect.size_of("atto", classes=3))
    made, fresh = with_classes(detector, 5)
    assert fresh == ("decoder.dec_score_head.0", "decoder.dec_score_head.1", "decoder.dec_score_head.2",
                     "decoder.denoising_class_embed", "decoder.enc_score_head")  # fmt: skip
    assert torch.equal(made.decoder.pre_bbox_head.layers[0].weight, detector.decoder.pre_bbox_head.layers[0].weight)
    assert made.decoder.enc_score_head.out_features == 5
    assert with_classes(detector, 3)[1] == ()


@pytest.mark.parametrize("name", ["atto", "n", *(pytest.param(each, marks=pytest.mark.slow) for each in "smlx"),
                                  pytest.param("femto", marks=pytest.mark.slow),
                                  pytest.param("pico", marks=pytest.mark.slow)])  # fmt: skip
def test_every_size_learns_two_pictures(name, tmp_path):
    steps = 6 if name in ("atto", "n") else 10
    recipe = DetectorRecipe(name, steps=steps, batch=2, side=96, queries=20, augment="none", denoising=4, lr=1e-3)
    totals = []
    Training(recipe, marked(2), None, tmp_path / "out").fit(
        lambda phase, done, total: totals.append(float(phase.split()[1]))
    )
    assert all(math.isfinite(total) for total in totals)
    assert min(totals[-2:]) < totals[0]


def test_data_that_does_not_go_with_the_recipe_is_refused_before_training(tmp_path):
    recipe = replace(DetectorRecipe(), **TINY)
    crowded = marked(1)
    many = replace(crowded.examples[0], boxes=np.tile(crowded.examples[0].boxes, (8, 1)), labels=np.zeros(16, int),
                   crowd=np.zeros(16, bool))  # fmt: skip
    with pytest.raises(UsageError, match="0 has 16 boxes, more than the 15 queries"):
        Training(recipe, Dataset("many", ("a", "b"), [many]), None, tmp_path)
    with pytest.raises(UsageError, match="has the classes a, and marked a, b"):
        Training(recipe, marked(), Dataset("held", ("a",), crowded.examples), tmp_path)
    for options, message in (
        ({"side": 100}, "sides that 32 divides, not 100"),
        ({"queries": 81, "side": 128}, "81 queries are chosen from 80 places.*at most 80"),
        ({"augment": "recipes"}, r"no augmentation 'recipes' \(did you mean 'recipe'\?\)"),
        ({"steps": 0}, "steps is 1 or more"),
    ):
        with pytest.raises(UsageError, match=message):
            DetectorRecipe(**options)


def test_the_commands_train_and_evaluate(tmp_path, capsys):
    data = marked(10)
    images, annotations = [], []
    for number, example in enumerate(data.examples):
        Image.fromarray(example.picture).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 80, "height": 60})
        for box, label in zip(example.boxes.tolist(), example.labels.tolist(), strict=True):
            wide, high = box[2] - box[0], box[3] - box[1]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": label + 1,
                                "bbox": [box[0], box[1], wide, high]})  # fmt: skip
    held = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(held))
    words = ["vision", "train", "detect", "--data", str(tmp_path / "coco.json"), "--side", "64", "--queries", "15",
             "--batch", "2", "--quiet"]  # fmt: skip
    assert cli.main([*words, "--steps", "2", "--out", str(tmp_path / "mine"), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["pictures"] == 1
    assert "step 2 of 2" in told.err
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["names"] == ["a", "b"]
    assert config["recipe"]["steps"] == 2
    assert (tmp_path / "mine" / "model.safetensors").stat().st_size < 1_100_000
    model = str(tmp_path / "mine")
    seen = ["vision", "eval", model, "--data", str(tmp_path / "coco.json"), "--quiet"]
    assert cli.main([*seen, "--layers", "1", "--queries", "5", "--size", "80", "--interval", "--json"]) == 0
    told = capsys.readouterr()
    assert told.err == "outlay: sides are multiples of 32: 96 pixels are taken, not 80\n"
    row = json.loads(told.out)
    assert (row["pictures"], row["side"], set(row["intervals"])) == (10, 96, {"ap", "ap50"})
    held["categories"].append({"id": 3, "name": "c"})
    (tmp_path / "more.json").write_text(json.dumps(held))
    words[4] = str(tmp_path / "more.json")
    assert cli.main([*words, "--steps", "1", "--from", model, "--out", str(tmp_path / "more")]) == 0
    told = capsys.readouterr().err
    assert "has 2 classes" in told
    assert "made anew: decoder.dec_score_head.0" in told
    for wrong, message in (
        (["--steps", "1", "--minutes", "1"], "say how long the training is"),
        (["--steps", "1", "--from", model, "--size", "n"], "is of size atto, not n"),
        (["--steps", "1", "--size", "atoo"], "there is no DEIMv2 of size 'atoo' (did you mean 'atto'?)"),
    ):
        assert cli.main([*words, *wrong, "--out", str(tmp_path / "x")]) == 2
        assert message in capsys.readouterr().err


def test_another_side_is_rounded_up_and_said():
    loaded = detect.Loaded(Detector("atto"), tuple(map(str, range(80))), 320)
    assert at_side(loaded, 256)[1] == ""
    found, remark = at_side(loaded, 250)
    assert (found.side, remark) == (256, "sides are multiples of 32: 256 pixels are taken, not 250")


def test_digits_name_their_splits():
    assert read_dataset("digits").source == "digits:test"
    assert len(read_dataset("digits:train").examples) == 16_000
