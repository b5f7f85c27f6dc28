"""`outlay compare`, from the command line to the files."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from outlay import catalog
from outlay.compare import folder, plots
from outlay.compare.journal import Journal
from outlay.decode.greedy import Greedy
from outlay.engine.method import About, Method
from outlay.errors import UsageError

SRC = Path(__file__).parents[2] / "src"
PROMPTS = [{"prompt": f"Prompt number {number}", "answer": "b"} for number in range(4)]
METHODS = "greedy,sample:temperature=0.9,top_k=50,beam:width=2"
SHORT = ("--max-tokens", 8, "--repeat", 2, "--quiet")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return path


@pytest.fixture
def given(tiny, prompts, tmp_path):
    """Compare the tiny model with itself into `tmp_path / "out"`."""
    return "--methods", METHODS, "--prompts", prompts, "--model", tiny, *SHORT, "--out", tmp_path / "out"


@pytest.fixture
def compare(outlay, given):
    """Compares what is `given`; later options replace earlier ones."""
    return lambda *words: outlay("compare", *given, *words)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def key(row):
    return row["method"], row["budget"], row["prompt"], row["seed"], row["repeat"]


def results(path):
    return json.loads((path / "results.json").read_text())


def test_a_comparison_leaves_everything_in_its_folder(compare, tmp_path):
    status, out, err = compare("--metric", "regex", "--seeds", 2, "--trace")
    assert (status, out, err) == (0, "", "")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found >= {"manifest.json", "prompts.jsonl", "runs.jsonl", "quality.jsonl", "results.json", "results.csv",
                     "report.html", "traces"}  # fmt: skip
    assert not [name for name in found if name.startswith(".")]
    runs = rows(tmp_path / "out" / "runs.jsonl")
    assert len({key(row) for row in runs}) == len(runs) == 3 * 4 * 2 * 2
    whole = results(tmp_path / "out")
    assert [contender["label"] for contender in whole["contenders"]] == [
        "greedy", "sample:temperature=0.9,top_k=50", "beam:width=2",
    ]  # fmt: skip
    for contender in whole["contenders"]:
        assert contender["errors"] == contender["unsteady"] == 0
        assert contender["compared"] == 8
        assert contender["entries"]["tokens_out"] | {"low": 8} == dict(median=8, low=8, high=8, mean=8, total=64)
    assert whole["contenders"][0]["identical"] == 8
    assert whole["contenders"][0]["ratios"]["tokens_per_second"] == {"median": 1, "low": 1, "high": 1}
    assert len(whole["texts"]) == 12
    assert len(whole["runs"]) == 24
    assert len(list((tmp_path / "out" / "traces").glob("*.jsonl"))) == 12
    assert all((tmp_path / "out" / run["trace"]).exists() for run in whole["runs"] if run["seed"] == 0)


def test_every_figure_of_the_results_follows_from_the_runs(compare, tmp_path):
    compare("--metric", "regex", "--seeds", 2)
    with (tmp_path / "out" / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    whole = results(tmp_path / "out")
    assert len(table) == 48
    for contender in whole["contenders"]:
        mine = [row for row in table if row["method"] == contender["method"]]
        marks = [float(row["quality"]) for row in mine]
        assert contender["quality"]["mean"] == pytest.approx(sum(marks) / len(marks))
        assert contender["entries"]["flops"]["total"] == sum(int(row["flops"]) for row in mine) / 2
        texts = {(text["prompt"]): "".join(text["pieces"]) for text in whole["texts"]
                 if whole["contenders"][text["contender"]] is contender}  # fmt: skip
        first = {row["prompt"]: row for row in mine if row["seed"] == row["repeat"] == "0"}
        assert all(float(first[str(prompt)]["quality"]) == ("b" in text) for prompt, text in texts.items())


def test_outputs_are_compared_with_the_reference(compare, tmp_path):
    compare("--methods", "greedy,beam:width=1,sample:temperature=5", "--reference", "beam:width=1")
    whole = results(tmp_path / "out")
    greedy, beam, sample = whole["contenders"]
    assert (greedy["identical"], greedy["compared"], greedy["first_difference"]) == (4, 4, None)
    assert greedy["reference"] == beam["reference"] == sample["reference"] == 1
    assert sample["identical"] == 0
    texts = {(text["contender"], text["prompt"]): text["pieces"] for text in whole["texts"]}
    for run in whole["runs"]:
        if run["contender"] == 2:
            at = run["first_difference"]
            ours, theirs = texts[2, run["prompt"]], texts[1, run["prompt"]]
            assert ours[:at] == theirs[:at]
            assert ours[at] != theirs[at]


def test_the_table_shows_each_method_and_where_the_files_are(outlay, tiny, prompts, tmp_path):
    status, out, _ = outlay("compare", "--methods", "greedy,beam", "--prompts", prompts, "--model", tiny, "--out",
                            tmp_path / "out", "--max-tokens", 8, "--metric", "exact", "--limit", 3)  # fmt: skip
    assert status == 0
    head, greedy, beam, *_ = out.splitlines()
    assert head.split() == ["exact", "tokens/s", "against", "the", "reference", "passes/token", "identical"]
    assert greedy.split()[0] == "greedy"
    assert greedy.split()[-3:] == ["reference", "1.00", "-"]
    assert beam.split()[0] == "beam"
    assert beam.rstrip().endswith("/3")
    assert "3 prompts, 1 seed, 3 repeats; medians" in out
    assert "\ntiny (" in out
    assert str(tmp_path / "out" / "report.html") in out


STOPPED_AFTER = 5  # runs
KILLED = f"""
import os, signal, sys
from outlay.cli import main
from outlay.compare.journal import Journal
add = Journal.add
def add_or_die(journal, rows):
    add(journal, rows)
    if len(journal.done) >= {STOPPED_AFTER}:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.add = add_or_die
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_what_was_stopped_goes_on_where_it_was(compare, given, tmp_path, monkeypatch, number):
    words = ("--seeds", 2, "--max-tokens", 20)
    journal = tmp_path / "out" / "runs.jsonl"
    if number == signal.SIGKILL:
        command = [sys.executable, "-c", KILLED, "compare", *map(str, (*given, *words))]
        environment = os.environ | {"PYTHONPATH": str(SRC)}
        assert subprocess.run(command, env=environment, timeout=60).returncode == -signal.SIGKILL
        before = journal.read_bytes()
        journal.write_bytes(before + b'{"method":"greedy","bud')
    else:
        add = Journal.add

        def add_and_stop(journal, rows):
            add(journal, rows)
            if len(journal.done) >= STOPPED_AFTER:
                os.kill(os.getpid(), number)

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "add", add_and_stop)
            status, _, err = compare(*words)
        assert status == 128 + number
        assert (
            err == f"outlay: stopped; what was done is in {journal.parent}, and the same command goes on from there\n"
        )
        before = journal.read_bytes()
    assert STOPPED_AFTER <= before.count(b"\n") < 48
    assert compare(*words)[0] == 0
    assert journal.read_bytes().startswith(before)
    assert compare(*words, "--out", tmp_path / "whole")[0] == 0
    resumed, whole = rows(journal), rows(tmp_path / "whole" / "runs.jsonl")
    assert sorted(map(key, resumed)) == sorted(map(key, whole))
    assert len({key(row) for row in resumed}) == len(resumed) == 48
    texts = [{key(row): row["tokens"] for row in found if "tokens" in row} for found in (resumed, whole)]
    assert texts[0] == texts[1]
    assert not any(contender["unsteady"] for contender in results(tmp_path / "out")["contenders"])


def test_a_finished_comparison_takes_no_new_runs_and_may_be_rated_by_another_metric(compare, tmp_path):
    compare("--metric", "exact")
    before = (tmp_path / "out" / "runs.jsonl").read_bytes()
    compare("--metric", "regex")
    assert (tmp_path / "out" / "runs.jsonl").read_bytes() == before
    assert results(tmp_path / "out")["manifest"]["metric"] == "regex"
    compare()
    assert all(contender["quality"] is None for contender in results(tmp_path / "out")["contenders"])


def test_a_manifest_runs_again(compare, outlay, prompts, tmp_path):
    compare("--metric", "regex", "--temperature", 0.7, "--budget", "target_passes=3|6")
    prompts.unlink()
    status, _, err = outlay("compare", "--from", tmp_path / "out", "--out", tmp_path / "again", "--quiet")
    assert (status, err) == (0, "")
    first, again = (results(tmp_path / name) for name in ("out", "again"))
    assert first["texts"] == again["texts"]
    assert first["manifest"]["declaration"] == again["manifest"]["declaration"]
    assert [c["label"] for c in again["contenders"]][:2] == ["greedy [target_passes=3]", "greedy [target_passes=6]"]
    assert outlay("compare", "--from", tmp_path / "out" / "manifest.json", "--out", tmp_path / "out", "--quiet")[0] == 0


def test_a_manifest_whose_model_has_other_weights_now_is_refused(compare, outlay, tiny, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    compare("--model", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    status, _, err = outlay("compare", "--from", tmp_path / "out", "--out", tmp_path / "again", "--quiet")
    assert status == 2
    assert "has other weights than the one of the manifest" in err


def test_a_manifest_with_other_prompts_beside_it_is_refused(compare, refusal, tmp_path):
    compare()
    with (tmp_path / "out" / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "one more"}\n')
    status, err = refusal("compare", "--from", tmp_path / "out", "--out", tmp_path / "again")
    assert status == 2
    assert "does not hold the prompts of the manifest" in err
    assert not (tmp_path / "again").exists()


def test_another_comparison_in_the_folder_is_refused_with_what_differs(compare, tmp_path):
    compare()
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    for words, said in [
        (("--max-tokens", 9), "its max_tokens is 8, not 9"),
        (("--seeds", 2), "its seeds is [0], not [0, 1]"),
        (("--limit", 2), "its prompts is"),
        (("--methods", "greedy"), "its methods is"),
    ]:
        status, out, err = compare(*words)
        assert (status, out) == (2, "")
        assert f"{tmp_path / 'out'} holds another comparison: " in err
        assert said in err
        assert err.count("\n") == 1
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(compare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prompts.jsonl").write_text("mine")
    status, _, err = compare()
    assert status == 2
    assert "is not empty and holds no comparison" in err
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_manifest_that_is_none_is_refused(compare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text('{"name": "an app"}')
    status, _, err = compare()
    assert status == 2
    assert "is not the manifest of a comparison" in err


def test_a_file_in_place_of_the_folder_is_refused(compare, tmp_path):
    (tmp_path / "out").write_text("mine")
    status, _, err = compare()
    assert status == 2
    assert "can't use" in err


def test_two_processes_in_one_folder_refuse_each_other(compare, tmp_path):
    with folder.locked(tmp_path / "out"):
        status, _, err = compare()
    assert status == 2
    assert "is in use by another comparison" in err
    assert compare()[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--metric", "exakt"), "there is no metric 'exakt' (did you mean 'exact'?)"),
        (
            ("--metric", "tests"),
            'the metric tests needs "tests" with each prompt, which prompts 1, 2, 3, 4 of 4 have not',
        ),
        (("--metric", "number"), "needs a number as"),
        (("--methods", "gredy,beam"), "did you mean 'greedy'"),
        (("--methods", "width=4"), "is an option without a method"),
        (("--methods", "best_of"), "best_of: "),
        (("--budget", "passes=4"), "no entry 'passes'"),
        (("--prompts", "missing.jsonl"), "there is no file missing.jsonl"),
        (("--repeat", 0), "--repeat must be a whole number, 1 or more"),
        (("--reference", "beem"), "the reference 'beem' is not among the methods"),
        (("--from", "m.json"), "leave out --methods"),
    ],
)
def test_what_can_not_be_compared_gets_one_line_and_leaves_nothing(compare, tmp_path, words, said):
    status, out, err = compare(*words)
    assert (status, out) == (2, "")
    assert err.startswith("outlay: ")
    assert err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_what_must_be_given_is_asked_for(refusal, tmp_path):
    assert refusal("compare", "--out", tmp_path / "out") == (
        2, "outlay: --methods is missing; see `outlay compare --help`\n",
    )  # fmt: skip
    assert refusal("compare", "--methods", "greedy")[0] == 2


def test_a_broken_line_is_named_and_the_others_go_on_if_asked(compare, prompts, tmp_path):
    prompts.write_text(prompts.read_text() + '{"prompt": "broken\n{"prompt": "last"}\n')
    status, _, err = compare()
    assert status == 2
    assert f"line 5 of {prompts} is not JSON" in err
    assert "--skip-bad" in err
    status, _, err = compare("--skip-bad")
    assert status == 0
    assert err.startswith(f"outlay: left out: line 5 of {prompts}")
    assert results(tmp_path / "out")["manifest"]["prompts"]["count"] == 5


@pytest.mark.parametrize(("extra", "method"), [("image", "greedy"), ("constraint", "superposed")])
def test_what_a_method_can_not_take_is_refused(compare, prompts, extra, method):
    prompts.write_text(prompts.read_text() + json.dumps({"prompt": "See?", extra: "json"}) + "\n")
    status, _, err = compare("--methods", method)
    assert status == 2
    assert f"prompt 5 has {'an' if extra == 'image' else 'a'} {extra}, which {method} can't take" in err


def test_a_constraint_that_can_not_be_read_is_refused(compare, prompts):
    prompts.write_text(prompts.read_text() + json.dumps({"prompt": "See?", "constraint": "x.png"}) + "\n")
    status, _, err = compare()
    assert status == 2
    assert "prompt 5: constraint 'x.png' is not known" in err


@dataclass(frozen=True)
class Drafted(Method):
    """Needs a draft."""

    about: ClassVar[About] = About(name="drafted", summary="", paper="", family="", spends="", saves="")

    def decode(self, run):
        if run.draft is None:
            raise UsageError("drafted needs a draft model: add --draft M")
        yield from Greedy().decode(run)


def test_a_method_whose_draft_is_missing_is_refused_before_anything_runs(compare, tiny, monkeypatch, tmp_path):
    for known in (catalog.entries(), catalog.methods()):
        monkeypatch.setitem(known, "drafted", Drafted)
    status, _, err = compare("--methods", "greedy,drafted")
    assert status == 2
    assert err == "outlay: drafted: drafted needs a draft model: add --draft M\n"
    assert not list((tmp_path / "out").iterdir())
    assert compare("--methods", "greedy,drafted", "--draft", tiny)[0] == 0
    whole = results(tmp_path / "out")
    assert whole["contenders"][1]["identical"] == 4
    assert whole["manifest"]["draft"]["fingerprint"] == whole["manifest"]["model"]["fingerprint"]


def test_a_metric_that_fails_loses_no_run(compare, prompts, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def score(prompt, text):\n    return 1 / (prompt['prompt'] != 'Prompt number 2')\n")
    status, _, err = compare("--metric", f"python:{mine}")
    assert status == 1
    assert "failed on prompt 3: ZeroDivisionError" in err
    before = (tmp_path / "out" / "runs.jsonl").read_bytes()
    mine.write_text("def score(prompt, text):\n    return len(text)\n")
    assert compare("--metric", f"python:{mine}")[0] == 0
    assert (tmp_path / "out" / "runs.jsonl").read_bytes() == before
    assert results(tmp_path / "out")["contenders"][0]["quality"]["mean"] == 8


def test_plots_are_made_where_matplotlib_is(compare, tmp_path):
    compare("--metric", "logprob")
    for name in ("speed", "pareto"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (tmp_path / "out" / f"{name}.svg").read_text()


def test_without_matplotlib_a_line_says_what_to_install(outlay, tiny, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    status, out, _ = outlay("compare", "--methods", "greedy", "--prompts", prompts, "--model", tiny, "--max-tokens", 4,
                            "--out", tmp_path / "out")  # fmt: skip
    assert status == 0
    assert "none: pip install 'outlay[plots]'" in out
    assert not list((tmp_path / "out").glob("*.png"))


def test_without_ray_a_line_says_what_to_install(compare, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = compare("--ray")
    assert status == 2
    assert "pip install 'outlay[ray]'" in err


def test_seconds_as_a_budget_may_write_another_text_each_time_and_that_is_counted(compare, tmp_path):
    assert compare("--methods", "greedy", "--max-tokens", 50_000, "--budget", "seconds=0.05", "--repeat", 4)[0] == 0
    [greedy] = results(tmp_path / "out")["contenders"]
    assert greedy["unsteady"] > 0
