"""The speculation suite: who takes which task, and what its report makes of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outlay.bench.data import prompts_of
from outlay.bench.interleave import Measurements
from outlay.bench.speculation.report import gains, overview, report
from outlay.bench.speculation.speculators import LlamaSpeculative, OurMethod
from outlay.bench.speculation.suite import SpeculationSettings, joined

SETTINGS = {
    "methods": ["outlay greedy", "outlay auto"], "sets": ["chat", "code"], "temperatures": [0.0, 0.6], "threads": 1,
    "count": 8, "new": 96, "rounds": 3, "batch": 16, "beside": [2, 32],
}  # fmt: skip
MACHINE = {"model": "m.gguf", "processor": "p", "cores": 2, "date": "2026-01-01", "seconds": 9.0, "versions": {}}


def row(name, speeds, prompts="chat", temperature=0.0, batch=1, beside=False, **counted):
    rounds = [{"tokens_per_second": speed, "digest": 7.0, **counted} for speed in speeds]
    return {"contender": name, "prompts": prompts, "temperature": temperature, "batch": batch, "beside": beside,
            "rounds": rounds}  # fmt: skip


def found(*rows, failures=None):
    names = ["outlay greedy", "outlay auto", "transformers lookup"]
    return {"settings": SETTINGS, "machine": MACHINE, "failures": failures or {}, "contenders": names, "values": rows}


def settings(peers):
    return SpeculationSettings(
        methods=(("greedy", None), ("auto", None), ("rsd", None)), peers=peers, data=Path(), sets=("chat", "code"),
        temperatures=(0.0, 0.6), threads=1, count=8, new=96, rounds=3, batch=16, beside=(2, 32),
    )  # fmt: skip


def test_peers_take_the_short_tasks_and_all_of_ours_the_long_ones():
    everything = settings(("llama-cpp-python",)).tasks()
    peer = LlamaSpeculative(Path("m.gguf"), False, Path())
    auto, rsd = (OurMethod("m", name, None, Path()) for name in ("auto", "rsd"))
    beside = [task for task in everything if peer.takes(task)]
    assert {(task.count, task.new, task.batch) for task in beside} == {(2, 32, 1)}
    assert len(beside) == 4
    assert [task for task in everything if rsd.takes(task)] == [
        task for task in everything if task not in beside and task.batch == 1
    ]
    assert [task for task in everything if auto.takes(task)] == everything
    assert not any(task.beside for task in settings(()).tasks())


@pytest.mark.parametrize(("spread", "places"), [(1, [0]), (4, [0, 2, 5, 7]), (10, range(10)), (16, range(10))])
def test_prompts_are_spread_over_the_set(tmp_path, spread, places):
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"prompt": str(place)}) + "\n" for place in range(10)))
    assert prompts_of(tmp_path, "chat", spread) == list(map(str, places))


def test_ratios_are_medians_over_rounds():
    made = found(
        row("outlay greedy", [100, 50, 80], tokens_per_pass=1.0),
        row("outlay auto", [130, 100, 100], tokens_per_pass=1.9, accepted_1=0.5, accepted_2=0.25),
    )
    said = report(made)
    assert "1.30x (1.25-2.00)" in said
    assert "50% 25%" in said
    gain = next(line for line in gains(made).splitlines() if line.startswith("chat"))
    assert gain.split() == ["chat", "1.30x", "(1.25-2.00)", "-", "-"]
    slow = gains(found(row("outlay greedy", [100]), row("outlay auto", [129])))
    gain = next(line for line in slow.splitlines() if line.startswith("chat"))
    assert gain.split()[1] == "1.29x"


def test_other_engines_are_compared_on_their_own_prompts_alone():
    said = report(
        found(
            row("outlay greedy", [100]), row("outlay auto", [500]), row("outlay auto", [80], beside=True),
            row("transformers lookup", [20], beside=True),
        )
    )  # fmt: skip
    table = said.split("Beside other engines, 2 prompts x 32 tokens\n")[1]
    assert "20.0 (4.00x)" in table
    assert table.splitlines()[-1].startswith("transformers lookup")


def test_a_text_that_is_not_greedys_and_a_peer_that_could_not_run_are_shown():
    other = row("outlay auto", [130])
    other["rounds"][0]["digest"] = 8.0
    said = report(found(row("outlay greedy", [100]), other, failures={"transformers lookup": "not installed"}))
    line = next(line for line in said.splitlines() if line.startswith("outlay auto"))
    assert line.split()[-1] == "no"
    assert "transformers lookup" not in gains(found(row("outlay greedy", [100]), other))


def test_the_overview_has_a_row_for_each_method_but_greedy():
    page = overview(found(row("outlay greedy", [100]), row("outlay auto", [130], tokens_per_pass=1.9)))
    assert "| **auto** | **1.30x, 1.9** | **-** |" in page
    assert "| greedy" not in page


def test_each_prompt_alone_is_a_task_and_a_round_is_the_sum_of_them():
    everything = settings(()).tasks()
    alone = [task for task in everything if task.batch == 1]
    assert [(task.prompts, task.temperature, task.spread, task.first, task.count) for task in alone] == [
        (name, temperature, 8, place, 1)
        for temperature in (0.0, 0.6)
        for name in ("chat", "code")
        for place in range(8)
    ]
    first, second = alone[:2]
    counted = {"target_passes": 8.0, "drafted": 20.0, "draft_passes": 4.0, "rounds": 8.0, "verified_1": 8.0}
    parts = {
        first: [{"tokens": 10.0, "seconds": 1.0, "digest": 5.0, "accepted_1": 2.0, **counted}, None],
        second: [{"tokens": 30.0, "seconds": 3.0, "digest": 6.0, "accepted_1": 6.0, **counted}, {"tokens": 1.0}],
    }
    measured = Measurements({("outlay auto", task): rounds for task, rounds in parts.items()})
    assert joined(measured) == [
        {
            "contender": "outlay auto", "prompts": "chat", "temperature": 0.0, "batch": 1, "beside": False,
            "rounds": [
                {"tokens_per_second": 10.0, "digest": 11.0, "tokens_per_pass": 2.5, "drafted_per_token": 1.0,
                 "draft_passes_per_pass": 0.5, "accepted_1": 0.5},
                None,
            ],
        }
    ]  # fmt: skip
