"""The search suite: what it counts, and how well it tells scorers apart."""

from __future__ import annotations

import json

import pytest

from outlay import UsageError, problems
from outlay.bench import registry
from outlay.bench.search.contenders import OurSearch, Setting, contenders
from outlay.bench.search.lookahead import LookaheadSettings, RandomPauses, body, tasks_of
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


def test_a_body_is_cut_at_the_first_line_that_is_not_in_it():
    assert body("    return 1\n\n\tx\nprint(f())\n    y") == "    return 1\n\n\tx\n"
    assert body("") == "\n"


def test_random_pauses_are_drawn_at_the_rate_whatever_the_entropy():
    """Within 4 standard errors; the draws are the same each time."""
    for size in (0.01, 5.0):
        drawn = [RandomPauses(0.0, rate=0.2).uncertain(size + at / 999, 0.0, at % 50) for at in range(5000)]
        assert abs(sum(drawn) / 5000 - 0.2) < 4 * (0.16 / 5000) ** 0.5


def test_tasks_of_code_are_right_where_their_tests_pass_and_the_threshold_learns_from_others(tmp_path):
    row = {"prompt": "def f():\n", "canonical_solution": "    return 1\n", "entry_point": "f",
           "test": "def check(f):\n    assert f() == 1\n"}  # fmt: skip
    file = tmp_path / "code.jsonl"
    file.write_text("".join(json.dumps(row | {"prompt": f"# {number}\ndef f():\n"}) + "\n" for number in range(3)))
    asked, others = tasks_of(LookaheadSettings(str(file), 2, 100, 8, 0))
    assert [task.prompt[2] for task in (*asked, *others)] == ["0", "1", "2"]
    assert asked[0].right("    return 1\nf() + None")
    assert not asked[0].right("    return 2")
    for tasks, count, message in ((str(file), 3, "has 3 tasks"), ("dates", 2, "takes minilist"), ("gone", 2, "takes")):
        with pytest.raises(UsageError, match=message):
            tasks_of(LookaheadSettings(tasks, count, 100, 8, 0))
    file.write_text(json.dumps({"prompt": "x"}))
    with pytest.raises(UsageError, match="in the form of HumanEval"):
        tasks_of(LookaheadSettings(str(file), 1, 100, 8, 0))


def test_programs_and_chains_are_tasks_too():
    programs, references = tasks_of(LookaheadSettings("minilist", 2, 30, 8, 0))
    assert (len(programs), len(references)) == (2, 30)
    assert programs[0].right(programs[0].solution)
    assert not programs[0].right("sort sort")
    chains, _ = tasks_of(LookaheadSettings("chains", 2, 30, 8, 0))
    assert chains[0].right(chains[0].solution)
    assert chains[0].prompt.endswith("\n")


def test_the_suite_measures_lookahead_in_place_of_scorers(tmp_path, capsys):
    from argparse import ArgumentParser

    suite, parser = registry.find("search"), ArgumentParser()
    suite.add_arguments(parser)
    words = ["--lookahead", "minilist", "--count", "3", "--references", "600", "--out", str(tmp_path / "search.json")]
    assert suite.run(parser.parse_args(words)) == 0
    found = json.loads((tmp_path / "search.json").read_text())
    assert report(found).strip() == capsys.readouterr().out.strip()
    spent = {row["name"]: sum(row["positions"]) / sum(row["tokens"]) for row in found["lookahead"]}
    assert spent["greedy"] == 1
    assert 1 <= spent["adadec"] <= spent["adadec, nothing reused"]
    assert spent["adadec"] <= spent["adadec, at every step"] <= 16
    assert suite.failure(found) is None
    assert registry.tables("search")["lookahead"](found).startswith("```\n$ outlay bench search --lookahead minilist")
