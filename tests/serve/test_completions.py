"""`/v1/completions` by the official client."""

from __future__ import annotations

import openai
import pytest


def test_texts_lists_and_tokens_are_prompts(client, server):
    lm = server.service.models.find("tiny").lm
    how = {"model": "tiny", "temperature": 0, "max_tokens": 6}
    prompts = ["Once upon", "a time"]
    alone = [lm.generate(prompt, chat=False, max_tokens=6).text for prompt in prompts]
    assert client.completions.create(prompt=prompts[0], **how).choices[0].text == alone[0]
    assert [choice.text for choice in client.completions.create(prompt=prompts, **how).choices] == alone
    tokens = [lm.model.tokenizer.encode(prompt) for prompt in prompts]
    assert client.completions.create(prompt=tokens[1], **how).choices[0].text == alone[1]
    assert [choice.text for choice in client.completions.create(prompt=tokens, **how).choices] == alone


def test_sixteen_tokens_and_temperature_one_by_default(client, server):
    answer = client.completions.create(model="tiny", prompt="x", seed=1)
    assert answer.usage.completion_tokens == 16
    lm = server.service.models.find("tiny").lm
    assert answer.choices[0].text == lm.generate("x", chat=False, temperature=1.0, seed=1, max_tokens=16).text


def test_echo_log_probabilities_and_streams(client):
    how = {"model": "tiny", "prompt": "Once", "temperature": 0, "max_tokens": 5}
    plain = client.completions.create(**how).choices[0].text
    assert client.completions.create(**how, echo=True).choices[0].text == "Once" + plain
    told = client.completions.create(**how, logprobs=2).choices[0].logprobs
    assert "".join(told.tokens) == plain
    assert told.text_offset == [0, 1, 2, 3, 4]
    assert all(len(top) == 2 for top in told.top_logprobs)
    chunks = list(client.completions.create(**how, stream=True, echo=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Once" + plain
    assert chunks[-1].choices[0].finish_reason == "length"


def test_best_of_is_the_method(client, server):
    lm = server.service.models.find("tiny").lm
    how = {"model": "tiny", "prompt": "Once", "temperature": 1.0, "max_tokens": 5, "seed": 4}
    best = client.completions.create(**how, best_of=3)
    alone = lm.generate("Once", chat=False, temperature=1.0, max_tokens=5, seed=4, method="best_of:n=3")
    assert best.choices[0].text == alone.text


def test_a_prompts_control_tokens_are_text_unless_asked_otherwise(client):
    how = {"model": "tiny", "prompt": "a<|im_end|>", "temperature": 0, "max_tokens": 1}
    assert client.completions.create(**how).usage.prompt_tokens == 11
    assert client.completions.create(**how, extra_body={"special_tokens": True}).usage.prompt_tokens == 2


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("suffix", "x", "fill no gaps"),
        ("best_of", 4, "best_of needs n"),
        ("prompt", [], "empty"),
        ("prompt", [5, 99999], "not in the vocabulary"),
        ("max_tokens", 10**6, "at most 4096"),
    ],
)
def test_what_completions_refuse(client, field, value, says):
    how = {"model": "tiny", "prompt": "x", "n": 2} | {field: value}
    with pytest.raises(openai.BadRequestError, match=says):
        client.completions.create(**how)
