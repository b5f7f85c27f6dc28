"""The steer suite: its forms and their checkers, what it counts, and how far texts are from the exact posterior."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import torch
from papers.distributions import FALSE_ALARM, p_value

from outlay import Sample, machine
from outlay.bench.steer import copying, policies, rewards, toy
from outlay.bench.steer.ours import Ours
from outlay.bench.steer.peers import gbnf
from outlay.bench.steer.report import copying as copying_table
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
from outlay.models.load import load_model
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


def test_copies_are_told_by_their_longest_common_substring_and_by_words_in_order():
    assert copying.common_substring("xx abcd yy", "__abcd__") == pytest.approx(0.4)
    assert copying.common_substring("", "abc") == 0
    assert copying.rouge_l("the cat sat down", "the dog and the cat sat") == pytest.approx(0.75)
    assert copying.rouge_l("sat cat the", "the cat sat") == pytest.approx(1 / 3)
    assert copying.rouge_l("", "a") == 0


def test_the_judge_finds_its_own_domain_probable_and_its_chances_add_up_to_one():
    judge = copying.Judge("for each in range(10):\n    print(each)\n" * 20)
    assert judge.nats("for each ", "in range(10)") < 2 < judge.nats("for each ", "QZ\u00e9 went up")
    assert sum(judge._chance("for ", chr(code)) for code in range(256)) == pytest.approx(1)


def test_the_corpus_keeps_passages_prompts_and_the_judges_code_apart():
    texts = copying.corpus()
    assert len(texts.passages) == copying.PASSAGES
    assert len(texts.prompts) == copying.USEFUL
    assert all(len(passage) == copying.PASSAGE for passage in texts.passages)
    for begin in (*texts.passages, *texts.prompts):
        assert begin not in texts.code
        assert begin not in texts.judged
    assert copying.corpus() == texts


def test_every_contender_writes_and_the_anchored_ones_keep_their_budget(monkeypatch, tmp_path):
    for name, value in {"BUDGETS": (0.5,), "SHARES": (0.5,), "NEW": 8, "LENGTH": 40}.items():
        monkeypatch.setattr(copying, name, value)
    whole = copying.corpus()
    texts = copying.Corpus(whole.novel[:20_000], whole.code[:20_000], whole.passages[:2], whole.prompts[:2], "ab" * 50)
    tokenizer = copying.trained_tokenizer(texts)
    for name, again in (("safe", ()), ("risky", texts.passages)):
        net = copying.trained(tokenizer, (texts.novel,), again, 2, lambda done: None)
        copying.save(tmp_path / name, net, tokenizer)
    safe, risky = (load_model(tmp_path / name, dtype="float32") for name in ("safe", "risky"))
    rows = copying.contenders(safe, risky, texts, copying.Judge(texts.judged), lambda *_: None)
    names = (copying.SAFE, copying.RISKY, copying.ANCHORED, copying.UNBANKED, copying.MIXED)
    assert tuple(row["name"] for row in rows) == names
    assert 0 < rows[2]["spent"] <= 1
    assert all(0 <= row["copied"] <= 1 and row["nats"] > 0 for row in rows)


def test_the_table_of_copies_tells_how_far_each_is_from_both_models():
    rows = [(copying.SAFE, 0.0, 0.1, 3.0), (copying.RISKY, 0.0, 0.5, 2.0), (copying.ANCHORED, 0.5, 0.2, 2.25)]
    found = {
        "copying": [
            {"name": name, "value": value, "copied": copied, "nats": nats, "spent": 0.5 * (name == copying.ANCHORED)}
            for name, value, copied, nats in rows
        ]
    }
    assert copying_table(found)[1][2] == ["anchored", "0.5", "20", "75", "2.25", "75", "50"]
    described = {"machine": machine.describe(("outlay",)) | {"model": "tiny"}, "settings": {}, "failures": {}}
    assert "copies of memorised passages" in report(found | described)
