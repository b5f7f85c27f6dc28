"""`outlay bench diffusion`: the trained models' measures, the cost of passes, and the report."""

from __future__ import annotations

import json

import pytest

from outlay.bench.diffusion import dictionaries, learned, passes
from outlay.bench.diffusion.report import break_even, report
from outlay.bench.diffusion.suite import SUITE
from outlay.lm import load
from outlay.problems import ambiguous
from outlay.train.commit_filter import FilterRecipe

SECONDS = {"one": 1.0, "whole": 20.0, "side": 150.0} | {f"block {n}": n / 4 for n in passes.BLOCKS}

LEARNED = [
    {"rule": rule, "passes": passes, "positions": 40.0, "same": same, "right": 0.9}
    for rule, passes, same in (
        ("threshold", 10.0, 1.0),
        ("threshold 0.5", 3.0, 0.8),
        ("learn2pd, accept 0.9", 4.0, 0.9),
    )
]


def quiet(*told):
    pass


@pytest.mark.parametrize("task", ["ambiguous", "noise_greedy"])
def test_rules_are_measured_on_the_models_that_come_with_the_package(task, monkeypatch):
    monkeypatch.setattr(dictionaries, "GREEDY_RULES", ("threshold:tau=2", "threshold"))
    monkeypatch.setattr(dictionaries, "SAMPLED_RULES", ("first_hitting", "threshold:tau=2", "threshold"))
    found = dictionaries.measured(dictionaries.TASKS[task], 4, quiet)
    one, strict = found["rows"][-2:]
    assert one["passes"] == 24 > strict["passes"]
    assert ("same" in one) == (task == "noise_greedy")
    assert all(0 <= row["bad"] <= 1 for row in found["rows"])


def test_the_aims_hold_at_small_scale():
    """ETE on the ambiguous dictionary at temperature 1: passes, bad slots, and what the gap is for."""
    task, lm = dictionaries.TASKS["ambiguous"], load("tiny-ambiguous", dtype="float32")
    questions = [ambiguous.DICTIONARY.row(number, "bench")["prompt"] for number in range(60)]

    def measured(rule):
        results = dictionaries.written(lm, questions, rule, 1.0)
        row = dictionaries._row(task, rule, questions, results, [])
        return row["passes"], row["bad"]

    strict, ete, without = map(measured, ("threshold", "ete:gap=6", "ete:gap=0,explore=3"))
    assert ete[0] <= 0.60 * strict[0]
    assert without[1] > 3 * ete[1]


def test_learn2pd_is_measured_beside_its_oracle():
    task = next(task for task in learned.TASKS if "tiny-noisy" in task.name)
    few = {"length": 24, "epochs": 5}
    found = learned.of_task(task, 8, FilterRecipe(**few), FilterRecipe.published(**few), quiet)
    rows = {row["rule"].partition(",")[0]: row for row in found["rows"]}
    assert rows["one by one"]["passes"] == 24
    assert rows["one by one"]["same"] == rows["oracle"]["same"] == 1
    assert rows["oracle"]["passes"] == min(row["passes"] for row in found["rows"] if row["same"] == 1)
    assert {*rows} >= {"threshold", "llada", "learn2pd", "learn2pd as published"}


@pytest.mark.parametrize("task", learned.TASKS, ids=lambda task: task.name)
def test_questions_of_learn2pd_are_answered_right_by_right_answers(task):
    first, again = (task.question(3, "bench") for _ in range(2))
    assert first.prompt == again.prompt != task.question(3, "filter").prompt
    assert not first.right("z" * task.length)


def test_letters_off_are_those_unlike_the_nearest_phrase():
    phrases = ambiguous.DICTIONARY.phrases
    assert dictionaries.letters_off(ambiguous.DICTIONARY, "AB", phrases["A"][2] + phrases["B"][0]) == 0
    wrong = phrases["A"][2][:5] + "#"
    assert dictionaries.letters_off(ambiguous.DICTIONARY, "AB", wrong + phrases["B"][0]) == 0.5


def test_proposals_of_middling_confidence_are_found_with_their_distance_from_an_anchor():
    cells = [{"position": p, "token": p, "confidence": c} for p, c in ((3, 0.8), (5, 0.95), (20, 0.75), (21, 0.7))]
    assert list(dictionaries._middling(cells)) == [(3, 3, "2"), (20, 20, "further")]


def test_where_a_canvas_breaks_even():
    assert break_even(8, SECONDS, "exact") == pytest.approx(8 * 2 / (8 - 2))
    assert break_even(8, SECONDS, "dual") is None, "a whole canvas takes longer than the tokens of a block"
    assert break_even(64, SECONDS, "dual") == pytest.approx(64 * 16 / (64 - 4))


def test_the_report_holds_every_part():
    rows = [{"rule": rule, "passes": 10.0, "bad": 0.1, "first": 0.4, "off": 0.5} for rule in ("threshold", "bacd")]
    found = {
        "machine": {"processor": "p", "cores": 2, "model": "m", "date": "d", "seconds": 1, "versions": {"outlay": "0"}},
        "ambiguous": {"samples": 4, "model": "outlay/tiny-ambiguous", "rows": rows},
        "determinism": {"samples": 4, "curves": {"a": [{"distance": "1", "cases": 3, "final": 1}], "b": []}},
        "learned": {"tasks": [{"task": "t", "length": 8, "samples": 4, "fitted": 8, "rows": LEARNED}]},
        "passes": {"prompt": 64, "canvas": 256, "format": "int4", "seconds": SECONDS},
    }
    text = report(json.loads(json.dumps(found)))
    assert "over threshold" in text
    assert "100.0% of 3" in text
    assert "learn2pd takes 0.40 of the passes of the cheapest threshold that agrees as often (threshold)." in text
    assert "the whole canvas" in text


@pytest.mark.slow
def test_the_suite_runs_as_a_whole(tmp_path):
    import argparse

    parser = argparse.ArgumentParser()
    SUITE.add_arguments(parser)
    args = parser.parse_args(["--samples", "2", "--questions", "4", "--out", str(tmp_path / "found.json")])
    assert SUITE.run(args) == 0
    assert set(json.loads((tmp_path / "found.json").read_text())) >= {"ambiguous", "passes", "pareto", "determinism"}
