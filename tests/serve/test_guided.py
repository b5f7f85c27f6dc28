"""Answers of a form that the request asks for: JSON, our own constraints, and calls of tools."""

from __future__ import annotations

import json
import re

import jsonschema
import openai
import pytest

HELLO = [{"role": "user", "content": "Hello there"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "age": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
NAMED = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
POINT = {
    "type": "object",
    "properties": {"x": {"$ref": "#/$defs/digit"}},
    "required": ["x"],
    "additionalProperties": False,
    "$defs": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
}
TOOLS = [
    {"type": "function", "function": {"name": "move", "parameters": POINT}},
    {"type": "function", "function": {"name": "greet", "parameters": SCHEMA}},
]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("method", ["greedy", "lookup", "auto", "speculative"])
def test_an_answer_is_json_of_the_schema_with_drafts_and_without(client, method, temperature):
    how = {"temperature": temperature, "seed": 3, "max_completion_tokens": 64, "response_format": NAMED}
    if method == "greedy" and temperature:
        method = "sample"
    extra = {"method": method} | ({"draft": "small"} if method == "speculative" else {})
    answer = client.chat.completions.create(model="tiny", messages=HELLO, **how, extra_body=extra)
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)
    assert answer.choices[0].finish_reason == "stop"
    if not temperature:
        plain = client.chat.completions.create(model="tiny", messages=HELLO, **how)
        assert answer.choices[0].message.content == plain.choices[0].message.content


def test_a_stream_and_responses_give_the_same_json(client):
    how = {"model": "tiny", "temperature": 0}
    whole = client.chat.completions.create(
        messages=HELLO, max_completion_tokens=64, response_format=NAMED, **how
    ).choices[0].message.content  # fmt: skip
    stream = client.chat.completions.create(
        messages=HELLO, max_completion_tokens=64, response_format=NAMED, stream=True, **how
    )
    assert "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices) == whole
    form = {"type": "json_schema", "name": "person", "schema": SCHEMA}
    answer = client.responses.create(input="Hello there", max_output_tokens=64, text={"format": form}, **how)
    assert answer.output_text == whole
    assert answer.text.format.schema_ == SCHEMA


def test_any_json_object(client):
    """A random model writes an endless one, which the limit cuts off; what there is of it begins an object."""
    answer = client.chat.completions.create(
        model="other", messages=HELLO, temperature=0, max_completion_tokens=40, response_format={"type": "json_object"}
    )
    text = answer.choices[0].message.content
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"regex": "[0-9]{3}-[a-c]{2}"}, "[0-9]{3}-[a-c]{2}"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "<" /[a-z]{2}/ ">"'}, "<[a-z]{2}>"),
        ({"json_schema": {"enum": [1, "a"]}}, '1|"a"'),
    ],
)
def test_our_own_constraints_hold_at_all_three_endpoints(client, constraint, pattern):
    how = {"model": "tiny", "temperature": 1, "extra_body": {"constraint": constraint}}
    texts = [
        client.chat.completions.create(messages=HELLO, max_completion_tokens=32, **how).choices[0].message.content,
        client.completions.create(prompt="Hello", max_tokens=32, **how).choices[0].text,
        client.responses.create(input="Hello", max_output_tokens=32, **how).output_text,
    ]
    assert all(re.fullmatch(pattern, text) for text in texts), texts


@pytest.mark.parametrize("model", ["tiny", "other"])
@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"move", "greet"}), ({"type": "function", "function": {"name": "move"}}, {"move"})],
)
def test_a_tool_is_called_where_one_must_be(client, model, choice, names):
    """`tiny` writes calls as Hermes does, `other` as Mistral."""
    how = {"model": model, "messages": HELLO, "tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    for seed in range(3):
        answer = client.chat.completions.create(temperature=1, seed=seed, max_completion_tokens=120, **how).choices[0]
        (call,) = answer.message.tool_calls
        assert call.function.name in names
        schema = POINT if call.function.name == "move" else SCHEMA
        jsonschema.validate(json.loads(call.function.arguments), schema)
        assert answer.finish_reason == "tool_calls"
        assert answer.message.content is None


def test_a_required_call_comes_in_pieces_and_from_responses_too(client):
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, tools=TOOLS, tool_choice="required", temperature=0, stream=True
    )
    calls = [call for chunk in stream for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    assert calls[0].function.name in ("move", "greet")
    json.loads("".join(call.function.arguments or "" for call in calls))
    tool = {"type": "function"} | TOOLS[0]["function"]
    answer = client.responses.create(
        model="tiny", input="Hello", tools=[tool], tool_choice={"type": "function", "name": "move"}, temperature=0
    )
    assert [(item.type, item.name) for item in answer.output] == [("function_call", "move")]
    jsonschema.validate(json.loads(answer.output[0].arguments), POINT)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "needs a schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 3}}}}, "wrong at"),
        ({"response_format": {"type": "xml"}}, "xml"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "fly"}}}, "'fly'"),
        ({"extra_body": {"constraint": {"regex": "(", "choice": ["a"]}}}, "one of regex"),
        ({"extra_body": {"constraint": {"regex": "("}}}, "can't be read"),
        ({"extra_body": {"constraint": {"regex": "a"}}, "response_format": NAMED}, "together"),
        ({"extra_body": {"constraint": {"regex": "a"}, "method": "superposed"}}, "takes no constraint"),
    ],
)
def test_what_cannot_be_held_to_is_refused_in_one_line(client, how, message):
    with pytest.raises(openai.BadRequestError, match=re.escape(message)) as error:
        client.chat.completions.create(model="tiny", messages=HELLO, **how)
    assert "\n" not in error.value.body["message"]


def test_reasoning_that_the_template_opened_stays_free(client):
    """A random model does not close its reasoning by itself, so its budget does; the answer is held to the schema."""
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0, max_completion_tokens=90, response_format=NAMED,
        extra_body={"chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": 12},
    ).choices[0].message  # fmt: skip
    assert answer.reasoning_content
    jsonschema.validate(json.loads(answer.content), SCHEMA)


def test_a_required_call_comes_without_reasoning(client):
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0, max_completion_tokens=90, tools=TOOLS, tool_choice="required",
        extra_body={"chat_template_kwargs": {"enable_thinking": True}},
    ).choices[0].message  # fmt: skip
    assert [call.function.name for call in answer.tool_calls] in (["move"], ["greet"])
    assert not hasattr(answer, "reasoning_content")


def test_a_schema_opens_no_file_and_no_connection(client, tmp_path):
    (tmp_path / "secret.json").write_text('{"const": "secret"}')
    for target in ((tmp_path / "secret.json").as_uri(), "http://127.0.0.1:9/schema.json"):
        schema = {"type": "object", "properties": {"a": {"$ref": target}}, "required": ["a"]}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(openai.APIStatusError) as error:
            client.chat.completions.create(
                model="tiny", messages=HELLO, temperature=0, max_completion_tokens=40, response_format=form
            )
        assert error.value.status_code == 400, error.value
