"""The search suite: what it counts, and how well it tells scorers apart."""

from __future__ import annotations

import json

import pytest

from outlay import UsageError, problems
from outlay.bench import registry
from outlay.bench.search.contenders import OurSearch, Setting, contenders
from outlay.bench.search.program_report import PLANNED, SAMPLES
from outlay.bench.search.programs import ProgramSearch, program_searches
from outlay.bench.search.report import report
from outlay.bench.search.suite import CODER, MODEL, SCORER
from outlay.bench.search.verifier import auc, auc_within_depths, whole_steps

SETTING = Setting(MODEL, SCORER, temperature=0.8, max_tokens=64, max_steps=10)
ROWS = problems.make("chains:count=3")


def test_steps_are_told_right_until_the_first_error():
    steps = ["1 + 2 = 3", "3 + 4 = 7", "7 - 1 = 6"]
    assert whole_steps("1 + 2 = 3\n3 + 4 = 8\n8 - 1 = 7", steps) == [
        ("1 + 2 = 3\n", True),
        ("1 + 2 = 3\n3 + 4 = 8\n", False),
    ]
    assert [right for _, right in whole_steps("\n".join(steps), steps)] == [True] * 3


def test_the_auc_is_the_share_of_pairs_in_order():
    assert auc([0.9, 0.5], [0.1, 0.5]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)


def test_the_shipped_verifier_tells_first_errors_from_right_steps_within_a_depth():
    """The goal is 0.9, on any problems."""
    found = auc_within_depths(SETTING, SCORER, problems.make("chains:count=12,seed=11"), 4)
    assert found["errors"] >= 15
    assert found["right"] >= 40
    assert found["auc"] > 0.9


def test_what_a_search_spends_is_what_its_ledger_says():
    for contender in (OurSearch("best_of:n=4,by=score", ""), OurSearch("astar:k=3", "", 12)):
        for counted in contender.answer(SETTING, ROWS[:2]):
            assert counted["tokens"] > 0
            assert 0 < counted["scores"] <= 12
            assert counted["positions"] >= counted["tokens"] * 0.5


def test_particles_compute_a_fifth_of_its_hubs_positions_and_no_more_where_it_shares_prefixes():
    pytest.importorskip("its_hub")
    hub_off, hub_on = contenders(16, True)[-2:]
    ours = OurSearch("particles:n=16", "")
    spent = {each: sum(row["positions"] for row in each.answer(SETTING, ROWS)) for each in (ours, hub_off, hub_on)}
    assert spent[ours] <= spent[hub_off] / 5
    assert spent[ours] <= spent[hub_on]


def test_the_suite_measures_and_reports(monkeypatch, tmp_path, capsys):
    from argparse import ArgumentParser

    suite, parser = registry.find("search"), ArgumentParser()
    suite.add_arguments(parser)
    out = tmp_path / "search.json"
    words = ["--count", "2", "--limit", "4", "--beside", "0", "--texts", "2", "--out", str(out)]
    assert suite.run(parser.parse_args(words)) == 0
    shown = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert report(found).strip() == shown.strip()
    assert "accuracy against tokens" in shown
    assert "accuracy against scores" in shown
    assert {each["curve"] for each in found["contenders"]} >= {"sample", "particles", "astar", "step beam"}
    assert all(len(each["right"]) == 2 for each in found["contenders"])
    assert "its_hub: not measured: none here" in " ".join(
        report(found | {"failures": {"its_hub:": "none here"}}).split()
    )


def test_the_suite_writes_programs_and_reports(tmp_path, capsys):
    from argparse import ArgumentParser

    suite, parser = registry.find("search"), ArgumentParser()
    suite.add_arguments(parser)
    out = tmp_path / "programs.json"
    words = ["--problems", "minilist", "--count", "3", "--limit", "4", "--out", str(out)]
    assert suite.run(parser.parse_args(words)) == 0
    shown = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert report(found).strip() == shown.strip()
    assert "pgtd:completions=4 over best_of:n=4,by=score" in shown
    assert "fewer public examples than greedy on 0 of 3 problems" in shown
    for each in found["contenders"]:
        assert len(each["solved"]) == 3
        assert all(spent <= 4 for spent in each["programs"])
    with pytest.raises(UsageError, match="leave --scorer out"):
        suite.settings(parser.parse_args([*words, "--scorer", "self"]))


def test_samples_and_plans_are_rated_by_public_examples_alone():
    rows = problems.make("minilist:count=2")
    setting = Setting(CODER, "", temperature=1.0, max_tokens=32, max_steps=1)
    for search in program_searches(4):
        blind = [{**row, "private": [((1,), (99,))]} for row in rows]
        if search.curve in (SAMPLES, PLANNED):
            seen = ProgramSearch(search.name, search.curve).answer(setting, rows)
            unseen = ProgramSearch(search.name, search.curve).answer(setting, blind)
            assert [row["public"] for row in seen] == [row["public"] for row in unseen]
            assert [row["positions"] for row in seen] == [row["positions"] for row in unseen]
            assert all(row["private"] == 0 for row in unseen)
