"""Sixteen requests, each with another method or another tree, in the same passes: each exact, each to its own end."""

from __future__ import annotations

import pytest
import torch

from outlay import LM, Budget
from outlay.decode.draft.ppd.prompt_tokens import KIND
from outlay.engine.engine import Engine
from outlay.models import fitted
from outlay.models.draft_head import untrained_draft_head
from outlay.testing import PROMPTS, tiny_model

TOKENS = 30
EXACT = [
    ("greedy", None),
    ("auto", None),
    ("auto:nodes=4", "head"),
    ("lookup", None),
    ("aded:table=none", None),
    ("aded:table=none,search=mcts,num_draft=8", None),
    ("ppd:rows=8,prompts={prompts}", None),
    ("speculative:depth=2", "model"),
    ("speculative:depth=6", "head"),
    ("speculative", "lookup"),
    ("rsd:branching=3x2", "model"),
    ("rsd:variant=s,width=2,depth=5", "model"),
    ("spectr:drafts=3,depth=4", "model"),
    ("specinfer:branching=2x2x2", "head"),
    ("auto", "model"),
    ("specinfer:branching=4", "model"),
]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def cases(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "tiny.ppd.safetensors"
    vectors = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(0))
    fitted.write(path, KIND, model, {"vectors": vectors}, accuracy=[[0.3, 0.1, 0.05]] * 3)
    drafts = {None: None, "model": tiny_model(1), "head": untrained_draft_head(model, 1, 128), "lookup": "lookup"}
    return [(method.format(prompts=path), drafts[draft]) for method, draft in EXACT]


@pytest.fixture
def together(model, cases):
    def run(options):
        lm = LM(model, Engine())
        with lm.engine.together():
            handles = [
                lm.submit(PROMPTS[place % len(PROMPTS)], method=method, draft=draft, seed=place,
                          ignore_eos=True, **{"max_tokens": TOKENS, **options(place)})
                for place, (method, draft) in enumerate(cases)
            ]  # fmt: skip
        return [handle.result(120) for handle in handles]

    return run


def test_each_writes_what_greedy_writes(model, together):
    for place, result in enumerate(together(lambda place: {})):
        expected = LM(model, Engine()).generate(PROMPTS[place % len(PROMPTS)], max_tokens=TOKENS, ignore_eos=True)
        assert result.tokens == expected.tokens, result.method


def test_each_stops_at_its_own_budget(together):
    caps = [("target_passes", 1 + place) if place % 2 else ("target_tokens", 40 + place) for place in range(16)]
    results = together(lambda place: {"budget": Budget(**dict([caps[place]]))})
    for (entry, cap), result in zip(caps, results, strict=True):
        assert getattr(result.ledger, entry) <= cap, result.method
        assert result.finish_reason == "budget" or len(result.tokens) == TOKENS


def test_each_stops_at_its_own_length(together):
    for place, result in enumerate(together(lambda place: {"max_tokens": 1 + place})):
        assert len(result.tokens) == 1 + place, result.method


def test_each_has_its_own_draws(model, cases, together):
    """Methods that match tokens write what sample writes with the same seed, whatever the others draft and draw."""
    matched = ("auto", "lookup", "aded", "ppd")
    results = together(lambda place: {} if cases[place][0] == "greedy" else {"temperature": 0.8, "top_p": 0.9})
    for place, result in enumerate(results):
        if cases[place][0].split(":")[0] not in matched:
            continue
        expected = LM(model, Engine()).generate(
            PROMPTS[place % len(PROMPTS)], method="sample", seed=place, max_tokens=TOKENS, ignore_eos=True,
            temperature=0.8, top_p=0.9,
        )  # fmt: skip
        assert result.tokens == expected.tokens, result.method
