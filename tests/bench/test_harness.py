"""The suite that measures the harness: what it times, and what its report says of it."""

from __future__ import annotations

import re
import time

import pytest

from outlay.bench.harness.evaluators import Answering
from outlay.bench.harness.report import report
from outlay.bench.harness.suite import HarnessSettings, overhead
from outlay.progress import silent

SETTINGS = {"methods": "greedy,sample:temperature=0.8", "new": 8, "docs": 4, "rounds": 3, "threads": 2}
MACHINE = {"model": "m.gguf", "processor": "p", "cores": 2, "date": "2026-01-01", "seconds": 9.0, "versions": {}}


def test_every_prompt_is_run_bare_and_by_the_harness(default_path):
    asked = HarnessSettings(prompts="arithmetic", count=3, **SETTINGS)
    found = overhead(asked, str(default_path), silent)
    assert len(found["bare"]) == len(found["compared"]) == 3
    assert all(seconds > 0.01 for seconds in (*found["bare"], *found["compared"]))
    assert found["summing_up"] > 0


def made(compared, ours, hf, failure=None):
    rows = [("outlay", ours, None), ("outlay float32", [1.0] * 3, None), ("hf float32, batch 1", hf, failure)]
    return {
        "machine": MACHINE, "settings": SETTINGS,
        "overhead": {"bare": [1.0, 2.0, 4.0], "compared": compared, "summing_up": 0.01},
        "lm_eval": [
            {"name": name, "task": "t", "failure": failure, "per_second": speeds, "besides": [0.5], "value": 0.5}
            for name, speeds, failure in rows
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("compared", "ratio", "whole"),
    [([1.02, 2.0, 4.04], "1.010", "1.010"), ([1.02, 2.1, 4.2], "1.050", "1.047")],
)
def test_the_overhead_is_the_median_of_paired_ratios_and_the_whole_with_the_report(compared, ratio, whole):
    said = report(made(compared, [6.0] * 3, [2.0] * 3))
    assert f"{ratio} (median over the prompts)" in said
    assert f"  {whole}\n" in said
    assert "wanted" not in said


def test_only_the_time_in_which_the_model_type_answers_is_counted():
    class Slow:
        def loglikelihood(self, requests):
            time.sleep(0.05)
            return [request * 2 for request in requests]

        def loglikelihood_rolling(self, requests):
            raise ValueError("no")

        def generate_until(self, requests):
            return requests

    lm, started = Slow(), time.perf_counter()
    with Answering(lm) as answering:
        time.sleep(0.2)
        assert lm.loglikelihood([1, 2]) == [2, 4]
        with pytest.raises(ValueError, match="no"):
            lm.loglikelihood_rolling([])
    assert 0.05 <= answering.seconds <= time.perf_counter() - started - 0.2
    assert vars(lm) == {}


def test_throughput_is_paired_with_the_fastest_hf():
    said = report(made([1.0, 2.0, 4.0], [6.0, 8.0, 9.0], [2.0, 2.0, 2.0]))
    assert "outlay over the fastest hf          4.00x (3.00-4.50)" in said
    slower = report(made([1.0, 2.0, 4.0], [5.0] * 3, [2.0] * 3))
    assert re.search(r"^outlay over the fastest hf +2\.50x \S+ +2\.50x", slower, re.MULTILINE), slower


def test_tasks_together_take_the_sum_of_their_times_and_hf_its_best_setting_for_each():
    found = made([1.0, 2.0, 4.0], [], [])
    found["lm_eval"] = [
        {"name": name, "task": task, "failure": None, "per_second": [speed], "besides": [0.5], "value": 0.5}
        for name, speeds in {"outlay": (4.0, 12.0), "hf, batch 1": (2.0, 1.0), "hf, batch 16": (1.0, 3.0)}.items()
        for task, speed in zip(("short", "long"), speeds, strict=True)
    ]
    said = report(found)
    assert re.search(r"^outlay +4 +12\.0 +6$", said, re.MULTILINE), said
    assert re.search(r"^hf, batch 16 +1 +3 +1\.5$", said, re.MULTILINE), said
    assert re.search(r"^outlay over the fastest hf +2\.00x \S+ +4\.00x \S+ +2\.50x", said, re.MULTILINE), said


def test_a_model_type_that_could_not_run_is_named_with_the_reason():
    said = report(made([1.0, 2.0, 4.0], [6.0] * 3, [None] * 3, "not installed"))
    assert "hf float32, batch 1                 not measured: not installed" in said
    assert re.search(r"^outlay over the fastest hf +- +-$", said, re.MULTILINE), said
