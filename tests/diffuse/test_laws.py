"""What holds for every commit rule, over the whole catalogue, on models of both kinds of attention."""

from __future__ import annotations

from typing import Any

import pytest

from outlay import catalog
from outlay.engine.canvas_run import CanvasRun
from outlay.testing import DiffusionLaws

SAMPLED = {"temperature": 0.9, "top_p": 0.95}
FULL, CAUSAL = {"shift": True}, {"block": 8}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("threshold:tau=0.02", FULL, {}),
    ("threshold:tau=0.02", CAUSAL, SAMPLED),
    ("threshold:tau=0.02,block=8,cache=dual", {}, SAMPLED),
    ("threshold:tau=0.02,block=8,cache=prefix", FULL, SAMPLED),
    ("threshold:tau=0.02,block=8,cache=dual,guidance=0.5", FULL, {}),
]
NAMED = {method.partition(":")[0] for method, *_ in CASES}
RULES = [name for name, method in catalog.methods().items() if issubclass(method.run_type, CanvasRun)]
CASES += [(name, FULL, {}) for name in RULES if name not in NAMED]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}-{bool(case[2])}", autouse=True)
def _each_case(request: pytest.FixtureRequest) -> None:
    TestEveryRule.method, TestEveryRule.model, TestEveryRule.options = request.param


class TestEveryRule(DiffusionLaws):
    pass
