"""The steer suite: its forms and their checkers, what it counts, and how far texts are from the exact posterior."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import torch
from papers.distributions import FALSE_ALARM, p_value

from outlay import Sample, machine
from outlay.bench.steer import policies, rewards, toy
from outlay.bench.steer.ours import Ours
from outlay.bench.steer.peers import gbnf
from outlay.bench.steer.report import report
from outlay.bench.steer.tasks import (
    DATE,
    FORMS,
    JSON,
    PEOPLE,
    PERSON,
    Checks,
    FirstMask,
    Pace,
    Texts,
    constraint_of,
    form,
)
from outlay.constrain import Grammar, JsonSchema, Regex
from outlay.constrain.describe import example
from outlay.testing import tiny_lm


@pytest.fixture(scope="module")
def ours():
    participant = Ours("tiny")
    participant._lm = tiny_lm()
    return participant


PROMPT = tuple(b"Say")


@pytest.mark.parametrize("each", FORMS, ids=lambda each: each.name)
def test_a_form_checks_beginnings_and_whole_texts_of_its_pattern(each):
    text = example(Regex(each.pattern))
    complete_ok, prefix_ok = each.checks()
    assert re.fullmatch(each.pattern, text)
    assert complete_ok(text.encode())
    assert all(prefix_ok(text[:end].encode()) for end in range(len(text) + 1))
    assert not complete_ok(text[:-1].encode()) or re.fullmatch(each.pattern, text[:-1])
    assert not prefix_ok(text.encode() + b"\n")
    assert Grammar(gbnf(each.parts)).check(text)


def test_what_a_text_costs_is_what_its_ledger_says(ours):
    free = ours.measure(Texts(DATE, "sample", PROMPT, 2, 16))
    drawn = ours.measure(Texts(DATE, "awrs:particles=2", PROMPT, 2, 16))
    assert free["valid"] == drawn["valid"] == 1
    assert free["tokens"] == drawn["tokens"] == 11
    assert 0 < drawn["passes"] <= 22  # all logits are a second request
    assert drawn["checks"] > 11
    assert ours.measure(Texts(JSON, "rejection:draws=2", PROMPT, 1, 16))["valid"] == 0


def test_masks_by_a_checker_ask_about_every_token_and_awrs_about_few(ours):
    masks, drawn = (ours.measure(Checks(DATE, method, PROMPT, 16)) for method in ("sample", "awrs:particles=1"))
    assert masks["valid"] == drawn["valid"] == 1
    assert masks["checks"] > 150  # the tiny model has 257 tokens, half of them bytes of longer characters
    assert drawn["checks"] < masks["checks"] / 2
    assert all(each["seconds"] > 0 for each in (masks, drawn))


def test_the_pace_is_that_of_texts_that_do_not_end_before_their_limit(ours):
    for schema in ("", PEOPLE):
        found = ours.measure(Pace(schema, "greedy", 0.0, PROMPT, 24))
        assert found["tokens"] == 24
        assert found["passes"] == 1
        assert found["seconds"] > 0
    assert len(json.loads(FirstMask(200).schema)["properties"]) == 200
    assert ours.measure(FirstMask(20, repeats=1))["cpu_seconds"] > 0
    assert JsonSchema(FirstMask(20).schema).masks_all
    assert constraint_of(JSON).masks_all
    assert form(DATE).pattern.startswith("[0-9]")
    assert set(PERSON["required"]) == set(PERSON["properties"])


def test_awrs_is_at_most_half_as_far_from_the_posterior_as_masks_are():
    found = toy.measured(64, 12)
    assert found["dead ends"]["awrs_weight"] >= 0.97
    for each in found.values():
        assert each["awrs_distance"] <= 0.5 * each["masks_distance"]


def test_the_distribution_of_masks_is_that_of_sampling_under_them():
    assert toy.by_masks(toy.DEAD_ENDS, ["aaaa", "bccc"]) == pytest.approx({"aaaa": 0.1, "bccc": 0.9})
    texts = ["bc", "ab", "aba", "ac"]
    expected = toy.by_masks(toy.LETTERS, texts)
    assert sum(expected.values()) == pytest.approx(1)
    results = toy.several(toy.chain(toy.LETTERS), toy.late_checker(texts), "sample", 400)
    counts = Counter(result.text for result in results)
    assert p_value(counts, expected) > FALSE_ALARM


def test_chains_have_the_probabilities_that_their_rows_say():
    assert toy.probability(toy.DEAD_ENDS, "aaaa") == pytest.approx(0.1 * 0.9**3 * 0.1)
    assert toy.distance({"a": 1.0}, {"a": 0.4, "b": 0.6}) == pytest.approx(0.6)
    (result,) = toy.several(toy.chain(toy.LETTERS), toy.late_checker(["bc"]), "sample", 1)
    assert result.text == "bc"


def test_a_policy_of_whole_texts_is_a_model_that_writes_them():
    """False alarms: 1e-4."""
    each = policies.problem(2)
    lm = rewards.LM(rewards.model_of(each.reference, "reference"), rewards.Engine(prefix_cache=False))
    results = rewards.drawn(rewards.Contender("sampling", lm, Sample()), each, 300)
    law = {place: chance for place, chance in enumerate(each.reference.flatten().tolist())}
    assert p_value(Counter(result.tokens[-1] for result in results), law) > FALSE_ALARM


def test_a_reward_is_measured_with_what_it_costs():
    found = rewards.measured(1, 12, 2, lambda *_: None)
    rows = {row["name"]: row for row in found["contenders"]}
    texts = round((rewards.positions(2) - 1) / 3)
    assert set(rows) >= {"sampling", "controlled decoding", "transfer_q", f"best of {texts}"}
    assert rows["sampling"]["positions"] == rows["sampling"]["passes"] == 4
    assert rows["controlled decoding"]["positions"] == rewards.positions(2)
    assert rows["transfer_q"]["positions"] == rewards.positions(2) + 4  # the target reads the text once
    assert rows["transfer_q"]["kl"] > 0
    shown = report({"settings": {}, "machine": machine.describe(()) | {"seconds": 1, "model": "m"}, "failures": {},
                    "rewards": found})  # fmt: skip
    assert "transfer_q over" in shown


def test_the_distribution_of_the_best_of_n_is_that_of_its_draws():
    each = policies.problem(1)
    assert torch.allclose(policies.best_of(each.reference, each.reward, 1), each.reference)
    assert float(policies.best_of(each.reference, each.reward, 5).sum()) == pytest.approx(1)
    best = each.reward.argmax()
    missed = (1 - float(each.reference.flatten()[best])) ** 5
    assert float(policies.best_of(each.reference, each.reward, 5).flatten()[best]) == pytest.approx(1 - missed)
