"""The events of a canvas in a trace: what each round proposed, and what it filled."""

from __future__ import annotations

import pytest

import outlay
from outlay import Budget
from outlay.engine.engine import Engine
from outlay.lm import LM
from outlay.testing import tiny_diffusion_model


def traced(lm, prompt, **options):
    events = []
    result = lm.generate(prompt, trace=events.append, **options)
    return (
        result,
        [event for event in events if event["event"] == "canvas"],
        [event for event in events if event["event"] == "fill"],
    )


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("exact-phrase", "threshold:block=8"),
        ("exact-phrase", "ete:block=8"),
        ("exact-phrase", "ete:block=8,mode=branch"),
        ("exact-phrase:noise=0.05x0.1", "localleap:block=8"),
        ("exact-phrase", "llada:steps=6,guidance=0.5"),
    ],
)
def test_the_filled_cells_of_each_round_are_the_text(model, method):
    result, canvases, fills = traced(outlay.load(model), "^ab", method=method, max_tokens=24)
    (canvas,) = canvases
    assert (canvas["begin"], canvas["length"]) == (3, 24)
    assert [cell["text"] for cell in canvas["prompt"]] == ["^", "a", "b"]
    assert [event["round"] for event in fills] == list(range(1, result.ledger.rounds + 1))
    filled = {cell["position"]: (event["round"], cell) for event in fills for cell in event["cells"] if cell["filled"]}
    assert [filled[3 + place][0] for place in range(24)] == result.facts["filled_in_round"]
    assert "".join(filled[3 + place][1]["text"] for place in range(24)) == result.text
    for event in fills:
        masked = [cell["position"] for cell in event["cells"]]
        assert masked == sorted(masked)
        assert all(filled[position][0] >= event["round"] for position in masked)
        assert all(0 <= cell["confidence"] <= 1 for cell in event["cells"])


def test_the_pass_that_a_budget_keeps_back_is_a_round_as_well():
    lm = LM(tiny_diffusion_model(block=8), Engine())
    result, _, fills = traced(
        lm, "Hello", method="threshold:tau=2", max_tokens=20, ignore_eos=True, budget=Budget(rounds=3)
    )
    assert [event["round"] for event in fills] == [1, 2, 3]
    assert [sum(cell["filled"] for cell in event["cells"]) for event in fills] == [1, 1, 18]
    assert result.finish_reason == "budget"
