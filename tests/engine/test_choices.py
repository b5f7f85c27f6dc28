"""Several samples of one prompt: each is the run of its own seed, and the prompt is computed once."""

from __future__ import annotations

import asyncio

import pytest

import outlay
from outlay.testing import PROMPTS, tiny_lm, tiny_model

PROMPT = "A prompt that all of the samples share"
OPTIONS = {"temperature": 1.0, "max_tokens": 12, "seed": 5}
METHODS = [
    ("sample", None), ("lookup", None), ("speculative", 0), ("rsd", 0), ("auto", None), ("best_of:n=2", None)
]  # fmt: skip


@pytest.mark.parametrize(("method", "draft"), METHODS)
def test_each_sample_is_the_run_of_its_seed_alone(method, draft):
    options = OPTIONS | {"method": method, "draft": None if draft is None else tiny_model(draft)}
    result = tiny_lm().generate(PROMPT, n=3, **options)
    alone = [tiny_lm().generate(PROMPT, **options | {"seed": seed}) for seed in (5, 6, 7)]
    assert [each.tokens for each in result.alternatives] == [each.tokens for each in alone]
    assert [each.finish_reason for each in result.alternatives] == [each.finish_reason for each in alone]
    assert [each.text for each in result.alternatives] == [each.text for each in alone]
    assert (result.text, result.tokens) == (alone[0].text, alone[0].tokens)
    assert result.finish_reason == alone[0].finish_reason
    assert len({tuple(each.tokens) for each in alone}) == 3


def test_the_prompt_is_computed_once_for_all_samples():
    lm = tiny_lm()
    result = lm.generate(PROMPT, n=4, method="sample", ignore_eos=True, **OPTIONS)
    text = 4 * (OPTIONS["max_tokens"] - 1)  # the last token of each is not read
    assert result.ledger.target_tokens == len(PROMPT) - 1 + 4 + text
    assert result.ledger.target_tokens == lm.engine.workers[0].ledger.target_tokens
    assert result.ledger.tokens_out == sum(len(each.tokens) for each in result.alternatives) == 48
    assert lm.engine.workers[0].passes <= 14, "the samples share passes"


def test_samples_stream_each_by_its_own_handle():
    lm = tiny_lm()
    handles = lm.submit_choices(PROMPT, 3, **OPTIONS)
    texts = ["".join(handle) for handle in handles]
    assert texts == [each.text for each in lm.generate(PROMPT, n=3, **OPTIONS).alternatives]


def test_a_budget_holds_for_each_sample():
    result = tiny_lm().generate(PROMPT, n=3, budget=outlay.Budget(tokens_out=4), ignore_eos=True, **OPTIONS)
    assert [len(each.tokens) for each in result.alternatives] == [4, 4, 4]
    assert {each.finish_reason for each in result.alternatives} == {"budget"}
    assert result.ledger.tokens_out == 12


def test_a_batch_takes_samples_too():
    lm = tiny_lm()
    together = lm.generate_batch(PROMPTS[:2], n=2, **OPTIONS)
    for prompt, result in zip(PROMPTS, together, strict=False):
        assert result.alternatives == lm.generate(prompt, n=2, **OPTIONS).alternatives


def test_one_sample_is_a_run_as_any_other():
    assert tiny_lm().generate(PROMPT, n=1, max_tokens=4).alternatives == []


def test_samples_that_could_not_differ_are_refused():
    lm = tiny_lm()
    with pytest.raises(outlay.UsageError, match="temperature above 0"):
        lm.generate(PROMPT, n=2)
    with pytest.raises(outlay.UsageError, match="temperature above 0"):
        lm.generate(PROMPT, n=2, method="beam")
    with pytest.raises(outlay.UsageError, match="n must be 1 or more, not 0"):
        lm.generate(PROMPT, n=0, temperature=1.0)
    with pytest.raises(outlay.UsageError, match="a function for each"):
        lm.generate(PROMPT, n=2, temperature=1.0, trace=print)


def test_samples_have_their_own_traces():
    events: list[list[dict]] = [[], []]
    for handle in tiny_lm().submit_choices(PROMPT, 2, traces=[each.append for each in events], **OPTIONS):
        handle.result(60)
    assert [each[0]["event"] for each in events] == ["start", "start"]
    assert events[0][-1] != events[1][-1]


def test_agenerate_takes_samples_too():
    lm = tiny_lm()
    result = asyncio.run(lm.agenerate(PROMPT, n=2, **OPTIONS))
    assert [each.tokens for each in result.alternatives] == [
        each.tokens for each in lm.generate(PROMPT, n=2, **OPTIONS).alternatives
    ]


PENALTIES = [
    {"frequency_penalty": 0.7},
    {"frequency_penalty": 0.4, "presence_penalty": 0.3, "repetition_penalty": 1.2},
    {"frequency_penalty": -0.5, "temperature": 0.9},
]


@pytest.mark.parametrize("options", PENALTIES)
def test_frequency_penalty_counts_for_drafted_tokens_and_in_batches(options):
    lm, more = tiny_lm(), {"max_tokens": 40, "ignore_eos": True, **options}
    plain = [lm.generate(prompt, **more).tokens for prompt in PROMPTS]
    assert plain != [lm.generate(prompt, **more | {"frequency_penalty": 0.0}).tokens for prompt in PROMPTS]
    assert [result.tokens for result in lm.generate_batch(PROMPTS, **more)] == plain
    drafting = [("lookup", None), ("auto", None)]
    if "temperature" not in options:
        drafting += [("speculative", tiny_model(0))]
    if options == {"frequency_penalty": 0.7}:  # a repetition penalty works on log-probabilities there, not on logits
        drafting += [("beam:width=1", None)]
    for method, draft in drafting:
        assert [lm.generate(prompt, method=method, draft=draft, **more).tokens for prompt in PROMPTS[:3]] == plain[:3]
