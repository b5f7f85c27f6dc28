"""`outlay bench vision`: contenders, what is measured of them on a few scenes, and the report."""

from __future__ import annotations

import json
from pathlib import Path

from outlay.bench.vision.report import command, report
from outlay.bench.vision.suite import METHODS, SUITE, VisionSettings

MACHINE = {"model": "glyphs", "processor": "none", "cores": 1, "date": "", "seconds": 1, "versions": {}}
CHOSEN = ("vasparse:alpha=1", "vasparse:lam=0.2", *(METHODS[f"keep 0.5, {prune}"] for prune in ("visual", "attention")))


def settings(*methods):
    return VisionSettings("digits", True, seeds=2, scenes=4, rounds=1, threads=1, methods=methods)


def test_all_contenders_are_measured_unless_some_are_named():
    assert settings().contenders == METHODS
    assert settings(*CHOSEN[:2]).contenders == {
        "greedy": "greedy", "vasparse, alpha 1": "vasparse:alpha=1", "vasparse:lam=0.2": "vasparse:lam=0.2"
    }  # fmt: skip


def test_chosen_methods_are_measured_beside_greedy_and_told():
    found = SUITE.measure(settings(*CHOSEN), Path("outlay/glyphs"), lambda *told: None)
    found = json.loads(json.dumps(found)) | {"machine": MACHINE}
    greedy, *others = found["rows"]
    assert len(others) == len(CHOSEN)
    assert greedy["over_greedy"] == {"value": 1, "low": 1, "high": 1}
    assert [each["keep"] for each in found["attention_over_visual"]] == [0.5]
    said = report(found)
    assert all(row["name"] in said for row in found["rows"])
    assert "attention alone over visual" in said
    assert command(found) == f"outlay bench vision --seeds 2 --scenes 4 --methods {' '.join(CHOSEN)}"
    found["attention_over_visual"] = []
    assert "attention alone over visual" not in report(found)
