"""`/v1/responses` by the official client."""

from __future__ import annotations

import json

import openai
import pytest
from serve.running import SCRIPTS

HOW = {"model": "tiny", "temperature": 0, "max_output_tokens": 8}
TOOLS = [{"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}]


def test_a_response_is_the_text_of_the_engine(client, server):
    lm = server.service.models.find("tiny").lm
    answer = client.responses.create(**HOW, input="Hello", instructions="Be brief.", metadata={"a": "b"})
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    alone = lm.generate(messages, max_tokens=8)
    assert answer.output_text == alone.text
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.input_tokens == alone.prompt_tokens
    assert answer.usage.output_tokens == 8
    assert answer.metadata == {"a": "b"}
    assert answer.outlay["method"] == "greedy"
    assert answer.store is False


def test_the_events_of_a_stream_tell_the_whole(client):
    whole = client.responses.create(**HOW, input="Hello", include=["message.output_text.logprobs"], top_logprobs=1)
    events = list(client.responses.create(**HOW, input="Hello", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == whole.output_text == events[-1].response.output_text
    assert "".join(each.token for each in whole.output[0].content[0].logprobs) == deltas


def test_function_calls_and_reasoning_are_items(client):
    SCRIPTS.append('<think>Hm.</think>Yes.<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
    how = {"model": "tiny", "input": "x", "tools": TOOLS, "temperature": 0}
    extra = {"method": f"script:number={len(SCRIPTS) - 1}"}
    answer = client.responses.create(**how, extra_body=extra)
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
    assert answer.output[0].content[0].text == "Hm."
    assert answer.output_text == "Yes."
    assert json.loads(answer.output[2].arguments) == {"a": 1}
    events = list(client.responses.create(**how, extra_body=extra, stream=True))
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert json.loads(done.arguments) == {"a": 1}
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message", "function_call"]
    call = answer.output[2]
    again = client.responses.create(
        **HOW, tools=TOOLS,
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
            {"type": "function_call_output", "call_id": call.call_id, "output": "1"},
        ],
    )  # fmt: skip
    assert again.usage.output_tokens == 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"), ("store", True), ("background", True), ("truncation", "auto"),
        ("reasoning", {"effort": "low"}), ("tools", [{"type": "web_search"}]),
        ("tool_choice", "required"),
    ],
)  # fmt: skip
def test_what_responses_refuse(client, field, value):
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(**HOW, input="Hello", **{field: value})
    assert error.value.param == field


def test_a_run_that_fails_in_a_stream_fails_the_response(client):
    events = list(
        client.responses.create(**HOW, input="Hello", stream=True, extra_body={"method": "breaks:tokens=2"})
    )  # fmt: skip
    assert events[-1].type == "response.failed"
    assert "the server failed" in events[-1].response.error.message
