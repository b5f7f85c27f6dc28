"""The best detector within a budget: what is tried, how ways are priced and measured, what is said where none fits."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from outlay import cli
from outlay.budget import Budget, Ledger
from outlay.errors import FailureError, UsageError
from outlay.vision import detect
from outlay.vision.detect import choose as choosing
from outlay.vision.detect.choose import (
    Options,
    Priced,
    Way,
    choose,
    choose_published,
    grades,
    nothing_fits,
    pareto,
    ways_of,
)
from outlay.vision.detect.datasets import Dataset, Example
from outlay.vision.detect.deimv2 import Detector
from outlay.vision.detect.detections import Effort, counted
from outlay.vision.detect.evaluate import evaluate

OPTIONS = Options(threads=(1,), dtypes=("float32",), sides=(64,))


@pytest.fixture(scope="module")
def loaded():
    torch.manual_seed(0)
    detector = Detector(detect.size_of("atto", classes=2, queries=20)).eval()
    with torch.no_grad():
        for head in (*detector.decoder.dec_bbox_head, detector.decoder.enc_bbox_head):
            head.layers[-1].weight.normal_(0, 0.3)
        detector.decoder.enc_score_head.weight.normal_(0, 1)
    return detect.Loaded(detector, ("a", "b"), 64)


@pytest.fixture(scope="module")
def data(loaded):
    """Pictures whose boxes are what the detector finds with half of its queries."""
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 255, (100, 120, 3), dtype=np.uint8) for _ in range(5)]
    seen = [each for pixels in pictures for each in detect.detect(loaded, [pixels], threshold=0, queries=10)]
    return Dataset("labelled", ("a", "b"), [
        Example(str(number), pixels, found.boxes.numpy()[:3], found.labels.numpy()[:3], np.zeros(3, dtype=bool))
        for number, (pixels, found) in enumerate(zip(pictures, seen, strict=True))
    ])  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """Replaces what measures: a way takes a millisecond a layer and one for each 10 queries, unless it is told."""
    told = {}

    def timed(priced, models, picture, rounds, progress):
        found = []
        for each in priced:
            usual = 1e-3 * each.way.layers + 1e-4 * each.way.queries
            queue = told.get((each.way.layers, each.way.queries))
            spent = Ledger(flops=each.ledger.flops, seconds=queue.pop(0) if queue else usual)
            found.append(replace(each, ledger=spent))
        return found

    monkeypatch.setattr(choosing, "_timed", timed)
    return told


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("outlay.vision.detect.evaluate.RESAMPLES", 5)


@pytest.fixture
def graded(monkeypatch):
    """Replaces quality: more layers are better, and more queries a little."""

    def quality(priced, models, data, progress):
        return [replace(each, quality=0.1 * each.way.layers + 1e-3 * each.way.queries) for each in priced]

    monkeypatch.setattr(choosing, "_graded", quality)


def test_all_layers_and_queries_of_one_look_are_those_of_looks_of_their_own(loaded, data):
    found = grades(loaded, data, [5, 20])
    assert set(found) == {(layers, queries) for layers in (1, 2, 3) for queries in (5, 20)}
    for (layers, queries), seen in found.items():
        assert seen == evaluate(loaded, data, layers=layers, queries=queries)
    assert grades(loaded, data, [5], only=2)[(2, 5)] == found[(2, 5)]
    assert len({seen.ap for seen in found.values()}) > 1


def test_ways_are_all_combinations_that_a_detector_has(loaded):
    ways = ways_of("m", loaded, Options(threads=(1, 2)))
    assert {way.side for way in ways} == {64}
    assert {way.layers for way in ways} == {1, 2, 3}
    assert {way.queries for way in ways} == {20, 15, 10, 5}
    assert len(ways) == 3 * 4 * 2 * 2
    larger = ways_of("m", replace(loaded, side=256), Options())
    assert {way.side for way in larger} == {256, 192, 128}
    for options, message in (
        (Options(sides=(100,)), "sides that 32 divides, not 100"),
        (Options(layers=(4,)), "m has 3 layers; try 1 to 3, not 4"),
        (Options(queries=(21,)), "m refines 20 places"),
    ):
        with pytest.raises(UsageError, match=message):
            ways_of("m", loaded, options)


def test_the_winner_is_the_best_of_what_fits_and_its_command_runs_it(loaded, data, clock, graded):
    found = choose({"m": loaded}, data, Budget(seconds=0.0036), OPTIONS)
    assert found.winner.way == Way("m", 3, 5, 64)
    assert found.again.seconds == found.winner.ledger.seconds
    assert found.away == 0
    assert found.basis == "labelled"
    assert found.winner.interval is not None
    assert found.winner.way.command() == (
        "outlay vision detect PICTURE --model m --layers 3 --queries 5 --size 64 --threads 1"
    )
    qualities = [each.quality for each in found.front]
    assert qualities == sorted(set(qualities))
    assert [each.ledger.seconds for each in found.front] == sorted(each.ledger.seconds for each in found.front)


def test_a_winner_that_is_over_the_budget_when_measured_again_is_left_out_and_said(loaded, data, clock, graded):
    clock[(3, 5)] = [0.0035, 0.005, 0.006, 0.005]  # the others are of the second measurement
    found = choose({"m": loaded}, data, Budget(seconds=0.0036), OPTIONS)
    assert found.winner.way == Way("m", 2, 15, 64)
    assert len(found.dropped) == 1
    assert "3 layers, 5 queries" in found.dropped[0]
    assert "1.39 times" in found.dropped[0]
    clock |= {(layers, queries): [0.001, 9.0, 9.0, 9.0] for layers in (1, 2, 3) for queries in (5, 10, 15, 20)}
    with pytest.raises(FailureError, match="over it when measured again"):
        choose({"m": loaded}, data, Budget(seconds=0.002), OPTIONS)


def test_a_second_measurement_that_was_disturbed_is_taken_again(loaded, data, clock, graded):
    clock[(3, 5)] = [0.0035, 0.02, 0.0036]
    found = choose({"m": loaded}, data, Budget(seconds=0.0036), OPTIONS)
    assert found.winner.way == Way("m", 3, 5, 64)
    assert found.again.seconds == 0.0036
    assert found.away == pytest.approx(0.0001 / 0.0035)


def test_counts_are_asked_before_anything_is_timed(loaded, data, clock, graded):
    size = loaded.detector.size
    one = counted(size, 64, Effort(1, 5)).flops
    found = choose({"m": loaded}, data, Budget(flops=one), OPTIONS)
    assert found.winner.way == Way("m", 1, 5, 64)
    with pytest.raises(
        FailureError, match=r"the closest, m, 1 layers, 5 queries, 64 px.*needs 2\.00 times as much: flops"
    ):
        choose({"m": loaded}, data, Budget(flops=one / 2), OPTIONS)
    with pytest.raises(FailureError, match=r"needs 15\.00 times as much: seconds 0\.0015 a picture"):
        choose({"m": loaded}, data, Budget(seconds=0.0001), OPTIONS)


def test_the_front_holds_what_nothing_beats_at_its_price():
    def priced(flops, quality):
        return Priced(Way("m", 1, flops, 64), Ledger(flops=flops), quality)

    every = [priced(1, 0.1), priced(2, 0.1), priced(3, 0.3), priced(4, 0.2), priced(3, 0.25), priced(5, 0.4)]
    assert [each.ledger.flops for each in pareto(every, Budget(flops=9))] == [1, 3, 5]
    assert "needs 2.00 times" in str(nothing_fits(every, Budget(flops=0.5)))


def test_published_figures_choose_pico_for_five_and_a_half_gflops():
    found = choose_published(Budget(flops=5.5e9))
    assert found.winner.way == Way("pico", 3, 200, 640)
    assert found.winner.quality == pytest.approx(0.385)
    assert found.winner.ledger.flops == pytest.approx(5.2e9, rel=0.03)
    assert found.basis.startswith("COCO, published")
    for name in ("atto", "femto", "pico", "n"):  # the published figures of the others leave attention's products out
        size = detect.SIZES[name]
        spent = counted(size, size.side, Effort(size.layers, size.queries)).flops
        assert spent == pytest.approx(1e9 * size.coco_gflops, rel=0.07), name


def test_a_real_measurement_is_taken_in_turns_and_holds_the_counts(loaded, data):
    found = choose({"m": loaded}, data, Budget(seconds=60), replace(OPTIONS, layers=(1, 3), queries=(5,)), rounds=1)
    assert found.winner.ledger.seconds > 0
    assert found.winner.ledger.amount("cpu_seconds") > 0
    assert found.winner.ledger.flops == counted(loaded.detector.size, 64, Effort(found.winner.way.layers, 5)).flops
    assert len(found.every) == 2


def test_the_command_shows_and_refuses(loaded, data, clock, graded, tmp_path, capsys, monkeypatch):
    detect.save(tmp_path / "m", loaded)
    monkeypatch.setattr("outlay.vision.detect.datasets.read_dataset", lambda source, bad: data)
    words = ["vision", "choose", str(tmp_path / "m"), "--data", "x", "--quiet"]
    narrow = ["--threads", "1", "--dtypes", "float32", "--sizes", "64"]
    assert cli.main([*words, *narrow, "--budget", "seconds=0.0036"]) == 0
    shown = capsys.readouterr().out
    assert "the best within seconds=0.0036" in shown
    assert "measured again: 3.5 ms a picture, 0% from the first time" in shown
    assert shown.splitlines()[-1].startswith("outlay vision detect PICTURE --model")
    assert cli.main([*words, *narrow, "--budget", "seconds=0.0036", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["winner"]["way"]["layers"] == 3
    assert cli.main(["vision", "choose", "--budget", "flops=5.5e9", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "pico" in shown
    assert "38.5" in shown
    assert "quality: COCO, published for other weights than yours" in shown
    for wrong, message, status in (
        (["vision", "choose", "--budget", "flops=5"], "nothing fits the budget; the closest, atto", 1),
        (["vision", "choose", "--budget", "tokens_out=5"], "the cost of a picture has seconds", 2),
        (["vision", "choose", "atoo", "--budget", "flops=5e9"], "of size 'atoo' (did you mean 'atto'?)", 2),
        ([*words, "--budget", "flops=5e9", "--dtypes", "float16"], "--dtypes must be some of float32, bfloat16", 2),
        (["vision", "choose", "--data", "x", "--budget", "flops=5e9"], "name the detectors to choose from", 2),
    ):  # fmt: skip
        assert cli.main(wrong) == status
        assert message in capsys.readouterr().err
