"""`outlay plan`: scaling laws of a table or of draft heads that it trains, predictions with intervals, and a choice."""

from __future__ import annotations

import argparse
import json
import re
from functools import partial

import pytest

from outlay.cli import plan as command
from outlay.scaling import plan
from outlay.scaling.laws import fit_joint, fit_loglinear
from outlay.scaling.points import Point
from outlay.scaling.report import TABLES
from outlay.scaling.timing import CostTiming, RoundCosts, SpeedTiming

# What the specification of Scylla measured on a small target: tau against tokens, and against layers.
TOKENS = [
    {"value": tau, "error": 0.05, "tokens": tokens}
    for tokens, tau in ((25e3, 1.61), (50e3, 1.84), (100e3, 2.01), (200e3, 2.72), (400e3, 3.13))
]
LAYERS = [
    {"value": tau, "error": 0.05, "tokens": 200e3, "layers": layers}
    for layers, tau in ((1, 2.72), (2, 2.98), (4, 3.16), (8, 3.33))
]
BOTH = TOKENS + LAYERS[1:]
SPEEDS = [
    {"value": speed, "batch": batch, "what": "tokens a second"}
    for batch, speed in ((1, 100), (2, 150), (4, 210), (8, 240), (16, 300))
]
PREDICTED = re.compile(r"^([\d,]+), (\d+) +(-|\d\.\d\d) +(\d\.\d\d) +(\d\.\d\d) to (\d\.\d\d) *(.*)$", re.MULTILINE)


@pytest.fixture
def planned(outlay, tmp_path):
    """Plans from a table; returns what is printed, and what is written as JSON."""

    def run(rows, *words):
        (tmp_path / "points.json").write_text(json.dumps(rows))
        found = tmp_path / "found.json"
        status, out, err = outlay("plan", "--table", tmp_path / "points.json", "--json", found, *words)
        assert (status, err) == (0, "")
        return out, json.loads(found.read_text())

    return run


@pytest.fixture
def refused(refusal, tmp_path):
    """The line with which a table is refused."""

    def run(rows, *words):
        (tmp_path / "points.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
        status, line = refusal("plan", "--table", tmp_path / "points.json", *words)
        assert status == 2
        return line

    return run


@pytest.fixture
def priced(monkeypatch, little_text):
    """A target whose passes take a millisecond and `a_row` for each row more, and heads that take `head` a layer."""

    def set_prices(head, a_row=0.0):
        def costs(lm, sizes, vocabulary, batch, progress):
            ends = {size: {depth: 1e-3 + depth * (head * size + a_row) for depth in (1, 8)} for size in sizes}
            return RoundCosts(1e-3, ends)

        monkeypatch.setattr(plan, "round_costs", costs)

    return set_prices


def predictions(out):
    """The rows of the table of predictions: (tokens, layers) -> measured, value, low, high and the warning."""
    rows = PREDICTED.findall(out)
    return {(int(t.replace(",", "")), int(d)): (m, float(v), float(a), float(b), w) for t, d, m, v, a, b, w in rows}


def test_the_specifications_points_give_its_laws(planned):
    out, found = planned(BOTH)
    assert out.startswith("tau at depth 5, of 8 points\n")
    tokens, layers = found["laws"]["tokens"], found["laws"]["layers"]
    assert tokens["slope"] == pytest.approx(1.30, abs=0.02)
    assert tokens["r2"] == pytest.approx(0.940, abs=0.003)
    assert layers["slope"] == pytest.approx(0.67, abs=0.01)
    assert layers["r2"] == pytest.approx(0.991, abs=0.003)
    for axis, law in found["laws"].items():
        low, high = law["ci95"]
        assert 0 < low < law["slope"] < high
        row = next(line for line in out.splitlines() if line.startswith(axis) and "measured" not in line)
        assert row.split()[1:6] == [f"{law['slope']:.3f}", f"{low:.3f}", "to", f"{high:.3f}", f"{law['r2']:.3f}"]
    assert [point["value"] for point in found["points"]] == [point["value"] for point in BOTH]
    assert found["choices"] == found["speeds"] == {}


def test_predictions_are_those_of_the_joint_law_with_its_intervals(planned):
    out, found = planned(BOTH, "--at", "1M:1,1M:2,10M:1")
    law = fit_joint([Point(**point) for point in BOTH], (1.0, 6.0))
    assert found["joint"] == pytest.approx(law.coefficients)
    rows = predictions(out)
    assert list(rows) == sorted(
        {(int(p["tokens"]), p.get("layers", 1)) for p in BOTH} | {(10**6, 1), (10**6, 2), (10**7, 1)}
    )
    written = {(each["tokens"], each["layers"]): each for each in found["predictions"]}
    assert list(written) == list(rows)
    assert written[10**6, 2]["measured"] is None
    assert written[10**7, 1]["warning"] == rows[10**7, 1][4]
    for (tokens, layers), (_, *shown, _) in rows.items():
        assert [written[tokens, layers][name] for name in ("value", "low", "high")] == pytest.approx(shown, abs=0.006)
        expected = law.predict(tokens, layers)
        assert shown == pytest.approx([expected.value, expected.low, expected.high], abs=0.006)
    for point in BOTH:
        measured, _, low, high, warning = rows[point["tokens"], point.get("layers", 1)]
        assert float(measured) == point["value"]
        assert low <= point["value"] <= high
        assert warning == ""
    assert rows[10**6, 2][0] == "-"
    assert rows[10**6, 2][4] == ""
    assert rows[10**7, 1][4] == "25 times beyond the data"
    width = {key: high - low for key, (_, _, low, high, _) in rows.items()}
    assert width[10**7, 1] > width[10**6, 1] > width[200_000, 1], "less is known far from the points"


def test_one_law_predicts_along_its_axis_and_says_what_it_does_not_reach(planned):
    out, found = planned(TOKENS, "--at", "1M:1,1M:2")
    assert list(found["laws"]) == ["tokens"]
    assert found["joint"] is None
    expected = fit_loglinear([Point(**point) for point in TOKENS], "tokens", (1.0, 6.0)).predict(1e6)
    rows = predictions(out)
    assert rows[10**6, 1][1:4] == pytest.approx([expected.value, expected.low, expected.high], abs=0.006)
    assert (10**6, 2) not in rows
    assert len(found["notes"]) == 1
    assert f"no law: {found['notes'][0]}" in out.splitlines()
    out, found = planned(LAYERS)
    assert list(found["laws"]) == ["layers"]
    assert set(predictions(out)) == {(200_000, layers) for layers in (1, 2, 4, 8)}


def test_what_is_predicted_is_never_more_than_a_chain_can_give(planned):
    out, _ = planned(TOKENS, "--at", "1000M:1")
    assert predictions(out)[10**9, 1][1:4] == (6.0, pytest.approx(5.5, abs=0.5), 6.0)


def test_a_law_that_the_points_do_not_allow_is_named_and_the_other_one_is_fitted(planned):
    out, found = planned(TOKENS + LAYERS[1:2])
    assert list(found["laws"]) == ["tokens"]
    assert "no law: a law in layers takes 4 different values over a span of 8 times; there are 2 over 2 times" in out


def test_speeds_have_a_law_in_the_batch(planned):
    out, found = planned(SPEEDS)
    assert out.startswith("tokens a second, of 5 points\n")
    assert list(found["laws"]) == ["batch"]
    assert found["laws"]["batch"]["slope"] == pytest.approx(162.8, abs=0.1)
    assert predictions(out) == {}


BAD = {
    "no JSON": ("{", "points.json is no JSON: Expecting property name"),
    "no list": ({}, "points.json must hold a list of points, each with value and tokens, layers or batch"),
    "empty": ([], "points.json must hold a list of points"),
    "no value": ([*TOKENS, {"tokens": 1e6}], "point 6 must be an object with value and any of batch, error, layers"),
    "no object": ([3], "point 1 must be an object"),
    "other column": ([{"value": 2, "token": 3}], "point 1 must be an object with value and any of"),
    "no number": ([{"value": "much"}], "point 1 must hold numbers, and sizes above 0: {'value': 'much'}"),
    "null": ([*TOKENS, {"value": None, "tokens": 3}], "point 6 must hold numbers"),
    "few": (TOKENS[:3], "a law in tokens takes 4 different values over a span of 8 times; there are 3 over 4 times"),
    "near": (
        [{**point, "tokens": 1e5 + place} for place, point in enumerate(TOKENS)],
        "a law in tokens takes 4 different values over a span of 8 times; there are 5 over 1 times",
    ),
    "alike": ([{"value": 2}, {"value": 3}], "the points differ neither in tokens, nor in layers, nor in batch"),
    "mixed": ([*TOKENS, {"value": 0.5, "tokens": 1e6, "what": "alpha"}], "points of different kinds: alpha, tau at"),
    "zero": ([*TOKENS, {"value": 1, "tokens": 0}], "point 6 must hold numbers, and sizes above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_table_that_no_law_can_be_fitted_to_gets_one_line(refused, case):
    rows, expected = BAD[case]
    assert expected in refused(rows)


def test_a_table_that_is_no_text_or_not_there_gets_one_line(refusal, tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for name, expected in (("latin", "outlay: {} is not UTF-8 text (byte 3)"), ("none", "can't read {}: No such file")):
        status, line = refusal("plan", "--table", tmp_path / name)
        assert status == 2
        assert expected.format(tmp_path / name) in line


OPTIONS = {
    "at": ("--at 1M", "--at must be TOKENS:LAYERS like 1M:1,400k:2, not '1M'"),
    "at nothing": ("--at 1M:", "--at must be whole numbers like 8 or 25k,100k,1M, not ''"),
    "tokens": ("--tokens 25K", "--tokens must be whole numbers like 8 or 25k,100k,1M, not '25K'"),
    "layers": ("--layers 0,1", "--layers must be whole numbers"),
    "batch": ("--batch 1.5", "--batch must be whole numbers"),
    "vocabulary": ("--vocabulary 0", "--vocabulary must be a whole number, 1 or more"),
    "both": ("--drafts head.safetensors", "give --table or --drafts, not both"),
    "option": ("--batches 2", "no option --batches (did you mean '--batch'"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_cannot_be_used_get_one_line(refused, case):
    words, expected = OPTIONS[case]
    assert expected in refused(BOTH, *words.split())


@pytest.mark.parametrize("words", ["--tokens 48,96 --layers 1,2", "--tokens 40,50,60,70 --layers 1,2,3"])
def test_too_few_sizes_for_a_law_are_refused_before_anything_is_written_or_trained(
    refusal, watch, little_text, tiny, tmp_path, words
):
    status, line = refusal("plan", "--model", tiny, "--work", tmp_path / "work", *words.split())
    assert status == 2
    assert "a law takes 4 draft heads of different sizes over a span of 8 times" in line
    assert {phase.split(",")[0] for phase, _ in watch.seen} & {"training", "writing text"} == set()


def test_amounts_are_written_with_k_and_m():
    assert command.amounts("400k,25k, 8,1M,1.5k,8") == [8, 1500, 25_000, 400_000, 1_000_000]
    assert command.amounts("16.1k,2.3M,1.005k") == [1005, 16_100, 2_300_000]
    assert command.sizes("1M:2,25k:1") == [(1_000_000, 2), (25_000, 1)]
    for bad in ("", "k", "1e3", "1.0005k", "-1", "1,,2"):
        with pytest.raises(argparse.ArgumentTypeError):
            command.amounts(bad)


def test_the_largest_head_is_chosen_where_layers_cost_nothing(planned, priced, tiny):
    priced(head=0.0)
    out, found = planned(BOTH, "--model", tiny, "--batch", "1,4", "--budget", "1M")
    for batch in ("1", "4"):
        best = found["choices"][batch]["best"]
        every = found["choices"][batch]["all"]
        assert (best["layers"], best["tokens"], best["depth"]) == (10, 1e6, 8)
        assert best["throughput"] == max(choice["throughput"] for choice in every)
        assert best["speedup"] == pytest.approx(best["tau"], rel=1e-3)
        assert best["low"] <= best["speedup"] <= best["high"]
        advice = "outlay train draft --layers 10 --tokens 1000000, and draft 8 tokens a round"
        assert f"at batch {batch}: {advice}\n" in out


def test_a_smaller_head_is_chosen_where_layers_cost_much(planned, priced, tiny):
    priced(head=2e-4)
    out, found = planned(BOTH, "--model", tiny, "--batch", "1")
    best = found["choices"]["1"]["best"]
    assert (best["layers"], best["tokens"]) == (1, 400e3), "without --budget, the most tokens that were measured"
    assert best["depth"] < 8
    assert "at batch 1: outlay train draft --layers 1 --tokens 400000" in out


def test_no_head_is_chosen_whose_file_is_too_large(planned, priced, tiny):
    priced(head=0.0)
    size = 2 * (2 * 32 * 32 + 2 * (32 * 8 * (8 + 4) + 3 * 32 * 64))  # bytes of a head of two layers
    _, found = planned(BOTH, "--model", tiny, "--batch", "1", "--bytes", size)
    assert found["choices"]["1"]["best"]["layers"] == 2
    assert {choice["layers"] for choice in found["choices"]["1"]["all"]} == {1, 2}


def test_nothing_is_drafted_where_no_head_is_sure_to_gain(planned, priced, tiny):
    priced(head=0.0, a_row=1e-3)
    out, found = planned(BOTH, "--model", tiny, "--batch", "1")
    assert found["choices"]["1"]["best"] is None
    assert found["choices"]["1"]["all"]
    assert "at batch 1: draft nothing: no speed-up is above 1 with its whole interval\n" in out


def test_the_documentation_says_what_the_command_printed(planned, priced, tiny):
    priced(head=0.0)
    out, found = planned(BOTH, "--model", tiny, "--batch", "1", "--at", "1M:1")
    head, _, body = TABLES["report"](found).partition("\n\n")
    assert head.startswith(f"```\n$ outlay plan\n{tiny} on ")
    assert body == f"{out.rstrip()}\n```"


def test_speed_ups_are_of_rounds_that_were_timed(planned, little_text, tiny, monkeypatch):
    """With the smallest and the largest head that is weighed, at each batch: 49 chains are priced by them."""
    measure, timed = plan.round_costs, {}

    def record(lm, sizes, vocabulary, batch, progress):
        assert (sizes, vocabulary) == ([1, 10], 60)
        timed[batch] = measure(lm, sizes, vocabulary, batch, progress, CostTiming(turns=1, warmup=0))
        return timed[batch]

    monkeypatch.setattr(plan, "round_costs", record)
    _, found = planned(BOTH, "--model", tiny, "--batch", "1,4", "--vocabulary", 60)
    for batch in (1, 4):
        costs, every = timed[batch], found["choices"][str(batch)]["all"]
        assert len({(choice["layers"], choice["depth"]) for choice in every}) == 7 * 7
        for choice in every:
            seconds = costs(choice["layers"], choice["depth"])
            assert choice["speedup"] == pytest.approx(choice["tau"] * costs.plain / seconds)
            assert choice["throughput"] == pytest.approx(batch * choice["tau"] / seconds)


def test_heads_are_trained_once_and_kept_and_are_points_themselves(outlay, watch, priced, tiny, tmp_path, monkeypatch):
    priced(head=0.0)
    kept = ("--model", tiny, "--work", tmp_path / "work")
    words = ("plan", *kept, "--vocabulary", 60, "--tokens", "48,96,192,384", "--layers", "1", "--batch", "1")
    status, out, _ = outlay(*words)
    assert status == 0
    assert out.startswith("tau at depth 5, of 4 points\n")
    measured = {key: row[0] for key, row in predictions(out).items()}
    assert list(measured) == [(48, 1), (96, 1), (192, 1), (384, 1)]
    assert "training" in {phase for phase, _ in watch.seen}
    watch.seen.clear()
    assert outlay(*words)[1] == out
    assert {phase for phase, _ in watch.seen} & {"training", "writing text"} == set()

    monkeypatch.setattr(plan, "HELD_TOKENS", 384)
    monkeypatch.setattr(plan, "batch_speeds", partial(plan.batch_speeds, timing=SpeedTiming(turns=2, tokens=6)))
    monkeypatch.setattr(plan, "BATCHES", (1, 2, 4, 8))
    heads = [tmp_path / "work" / f"1x{tokens}.safetensors" for tokens in (48, 96, 192, 384)]
    status, out, err = outlay("plan", *kept, "--drafts", *heads)
    assert err == ""
    assert status == 0
    assert {key: row[0] for key, row in predictions(out).items()} == measured
    assert "measured with a trained draft head, a chain of 4\n" in out
    speeds = re.findall(r"^(\d+) +(\d+) +(\d+) +(\d\.\d\d)x$", out, re.MULTILINE)
    assert [batch for batch, *_ in speeds] == ["1", "2", "4", "8"]
    for _, plain, drafted, ratio in speeds:
        assert int(drafted) / int(plain) == pytest.approx(float(ratio), abs=0.02)


@pytest.mark.parametrize(
    ("rows", "words"), [(LAYERS, ("--budget", "1M")), ([{**point, "layers": 5} for point in TOKENS], ())]
)
def test_a_law_that_reaches_no_head_gives_no_choice(planned, priced, tiny, rows, words):
    priced(head=0.0)
    assert planned(rows, "--model", tiny, *words)[1]["choices"] == {}


@pytest.mark.parametrize("row", [{"value": float("nan"), "tokens": 3e5}, {"value": 1, "tokens": 0, "layers": 3}])
def test_points_that_have_no_logarithm_are_refused(refused, row):
    assert "point 9" in refused([*BOTH, row])


def test_a_file_that_cannot_be_written_is_a_failure(outlay, tmp_path):
    (tmp_path / "points.json").write_text(json.dumps(BOTH))
    status, _, err = outlay("plan", "--table", tmp_path / "points.json", "--json", tmp_path)
    assert status == 1
    assert err == f"outlay: can't write {tmp_path}: Is a directory\n"


def test_a_split_is_planned_for_each_batch_and_written(outlay, tmp_path):
    file = tmp_path / "split.json"
    words = [
        "--split",
        "2M",
        "--hidden",
        "128",
        "--inputs",
        "16",
        "--outputs",
        "4",
        "--batch",
        "1,2",
        "--vocabulary",
        "64",
    ]
    status, out, _ = outlay("plan", *words, "--threads", "1", "--json", file)
    assert status == 0
    assert "batch 1: 16 places in, 4 tokens out" in out
    assert "batch 2: " in out
    assert "predicted, not run" in out
    plans = json.loads(file.read_text())["split"]
    assert [plan["task"]["batch"] for plan in plans] == [1, 2]
    assert all(split["seconds"] > 0 for plan in plans for split in plan["splits"])


def test_a_split_takes_no_model_and_no_table(refusal):
    assert refusal("plan", "--split", "2M", "--model", "smollm2-135m")[0] == 2
    status, line = refusal(
        "plan", "--split", "100", "--hidden", "64", "--inputs", "4", "--outputs", "1", "--vocabulary", "64"
    )
    assert (status, "two layers of width 64" in line) == (2, True)
