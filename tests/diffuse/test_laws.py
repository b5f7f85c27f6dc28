"""What holds for every commit rule, over the whole catalogue, on models of both kinds of attention."""

from __future__ import annotations

from typing import Any

import pytest
from diffuse.made import threshold_filter

from outlay import catalog
from outlay.diffuse.learn2pd import Learn2PD
from outlay.engine.canvas_run import CanvasRun
from outlay.engine.method import Method
from outlay.testing import DiffusionLaws

SAMPLED = {"temperature": 0.9, "top_p": 0.95}
FULL, CAUSAL = {"shift": True}, {"block": 8}
CASES: list[tuple[str | Method, dict[str, Any], dict[str, Any]]] = [
    ("threshold:tau=0.02", FULL, {}),
    ("threshold:tau=0.02", CAUSAL, SAMPLED),
    ("threshold:tau=0.02,block=8,cache=dual", {}, SAMPLED),
    ("threshold:tau=0.02,block=8,cache=prefix", FULL, SAMPLED),
    ("threshold:tau=0.02,block=8,cache=dual,guidance=0.5", FULL, {}),
    (Learn2PD(filter=threshold_filter(0.02, 8)), FULL, {}),
    (Learn2PD(filter=threshold_filter(0.02, 8)), CAUSAL, {}),
]
NAMED = {method.about.name if isinstance(method, Method) else method.partition(":")[0] for method, *_ in CASES}
RULES = [name for name, method in catalog.methods().items() if issubclass(method.run_type, CanvasRun)]
CASES += [(name, FULL, {}) for name in RULES if name not in NAMED]


def _named(case: tuple[str | Method, dict[str, Any], dict[str, Any]]) -> str:
    return f"{case[0].about.name if isinstance(case[0], Method) else case[0]}-{case[1]}-{bool(case[2])}"


@pytest.fixture(params=CASES, ids=_named, autouse=True)
def _each_case(request: pytest.FixtureRequest) -> None:
    TestEveryRule.method, TestEveryRule.model, TestEveryRule.options = request.param


class TestEveryRule(DiffusionLaws):
    pass
