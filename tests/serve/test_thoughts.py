"""Reasoning: told from the answer, and ended where its budget is used up."""

from __future__ import annotations

import openai
import pytest
from serve.running import SCRIPTS

from outlay.models.reasoning import TAGS
from outlay.serve.thoughts import Thoughts

HELLO = [{"role": "user", "content": "Why?"}]
TEXT = "<think>\nHm, because </thin> it is.\n</think>\n\nBecause."


def parted(pieces, opened=False):
    thoughts = Thoughts(TAGS[0], opened)
    deltas = [delta for piece in pieces for delta in thoughts.push(piece)] + thoughts.finish()
    return [
        "".join(delta.text for delta in deltas if delta.kind == kind) for kind in ("reasoning", "content")
    ], thoughts.closed  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_reasoning_is_told_from_the_answer_in_pieces_of_any_size(size):
    pieces = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
    assert parted(pieces) == (["Hm, because </thin> it is.", "Because."], True)


def test_a_template_may_have_opened_the_reasoning():
    assert parted(["so ", "it </think> is"], opened=True) == (["so it", "is"], True)
    assert parted(["never closed"], opened=True) == (["never closed", ""], False)
    assert parted(["no <think> at the start"]) == (["", "no <think> at the start"], False)


def ask(client, text, **how):
    SCRIPTS.append(text)
    extra = {"method": f"script:number={len(SCRIPTS) - 1}"} | how.pop("extra", {})
    return client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0, extra_body=extra, **how
    )  # fmt: skip


def test_the_client_gets_reasoning_apart(client):
    answer = ask(client, TEXT)
    assert answer.choices[0].message.content == "Because."
    assert answer.choices[0].message.reasoning_content == "Hm, because </thin> it is."
    assert 20 < answer.usage.completion_tokens_details.reasoning_tokens < len(TEXT)
    chunks = list(ask(client, TEXT, stream=True))
    reasoning = "".join(getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks)
    assert reasoning == answer.choices[0].message.reasoning_content


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_ended_at_its_budget_and_an_answer_comes(client, server, stream):
    """The model that always writes letters never ends its reasoning by itself."""
    budget, words = 60, server.settings.closing_words
    how = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_completion_tokens": 100}
    extra = {"thinking_token_budget": budget, "chat_template_kwargs": {"enable_thinking": True}}
    answer = client.chat.completions.create(**how, extra_body=extra, stream=stream)
    if stream:
        deltas = [chunk.choices[0].delta for chunk in answer]
        reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        content = "".join(delta.content or "" for delta in deltas)
    else:
        reasoning, content = answer.choices[0].message.reasoning_content, answer.choices[0].message.content
        assert answer.usage.completion_tokens == 100
        assert answer.usage.completion_tokens_details.reasoning_tokens == budget
        assert answer.outlay["ledger"]["tokens_out"] >= 100 - len(words) - 4
    assert reasoning.endswith(words.strip())
    assert len(reasoning) <= budget
    lm = server.service.models.find("tiny").lm
    free = client.chat.completions.create(
        **how | {"max_completion_tokens": budget}, extra_body={"chat_template_kwargs": extra["chat_template_kwargs"]}
    ).choices[0].message.reasoning_content  # fmt: skip
    assert free.startswith(reasoning.removesuffix(words.strip()).rstrip())
    assert len(content) > 20
    assert lm is not None


def test_reasoning_within_its_budget_is_left_alone(client):
    free, within = ask(client, TEXT), ask(client, TEXT, extra={"thinking_token_budget": 200})
    assert within.choices[0].message == free.choices[0].message
    assert within.outlay["ledger"]["target_passes"] == free.outlay["ledger"]["target_passes"]


def test_a_model_that_does_not_think_has_no_such_budget(client, server, monkeypatch):
    monkeypatch.setitem(server.service.models.find("other").__dict__, "tags", None)
    with pytest.raises(openai.BadRequestError, match="does not think") as error:
        client.chat.completions.create(
            model="other", messages=HELLO, extra_body={"thinking_token_budget": 5}
        )  # fmt: skip
    assert error.value.param == "thinking_token_budget"
