"""Tool calls in the forms that models write them, whole and in pieces of any size."""

from __future__ import annotations

import json
import random

import pytest
from serve.running import SCRIPTS

from outlay.serve.tools import FORMS, CallParser, form_of

NAMES = frozenset({"get_weather", "add", "now"})
WRITTEN = {
    "hermes": [
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}\n</tool_call>', "",
         [("add", {"a": 1, "b": [2, {"c": "}"}]})]),
        ('Let me see.\n<tool_call>{"name": "now", "arguments": {}}</tool_call>\n'
         '<tool_call>{"arguments": {"a": 3}, "name": "add"}</tool_call>', "Let me see.\n",
         [("now", {}), ("add", {"a": 3})]),
        ('<tool_call>\n{"name": "now"}\n</tool_call>', "", [("now", {})]),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("add", {"a": 1})]),
        ("a < b and <tool> are text", "a < b and <tool> are text", []),
        ('<tool_call>{"name": "rm", "arguments": {}}</tool_call>', None, []),
        ("<tool_call>no object</tool_call>", "<tool_call>no object</tool_call>", []),
    ],
    "llama3": [
        ('{"name": "get_weather", "parameters": {"city": "Z\u00fcrich \\"x\\""}}', "",
         [("get_weather", {"city": 'Z\u00fcrich "x"'})]),
        ('<|python_tag|>{"name": "now", "parameters": {}}; {"name": "add", "parameters": {"a": -1.5}}', "",
         [("now", {}), ("add", {"a": -1.5})]),
        ('{"weather": "fine"}', '{"weather": "fine"}', []),
        ("It is {fine}.", "It is {fine}.", []),
    ],
    "mistral": [
        ('[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}, {"name": "now", "arguments": {}}]', "",
         [("add", {"a": 1}), ("now", {})]),
        ('Well.[TOOL_CALLS]add{"a": 1}[TOOL_CALLS]now[ARGS]{}', "Well.", [("add", {"a": 1}), ("now", {})]),
        ('[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"a": {"b": "]"}}', "", [("add", {"a": {"b": "]"}})]),
        ("a list [1, 2]", "a list [1, 2]", []),
    ],
}  # fmt: skip
CASES = [(form, *case) for form, cases in WRITTEN.items() for case in cases]


def read(form, pieces):
    """Returns the content and the calls that a parser makes of pieces, with the ids."""
    parser = CallParser(FORMS[form], NAMES)
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish()
    content = "".join(delta.text for delta in deltas if delta.kind == "content")
    calls, ids = [], []
    for delta in deltas:
        if delta.kind == "call":
            assert delta.call == len(calls)
            calls.append([delta.text, ""])
            ids.append(delta.call_id)
        elif delta.kind == "arguments":
            calls[delta.call][1] += delta.text
    return content, [(name, json.loads(arguments)) for name, arguments in calls], ids


@pytest.mark.parametrize(("form", "text", "content", "calls"), CASES)
def test_calls_are_read_whole_letter_by_letter_and_in_random_pieces(form, text, content, calls):
    draw = random.Random(text)
    cuts = [sorted(draw.sample(range(len(text) + 1), min(6, len(text)))) for _ in range(10)]
    ways = [
        [text],
        list(text),
        *([text[a:b] for a, b in zip([0, *cut], [*cut, len(text)], strict=True)] for cut in cuts),
    ]
    for pieces in ways:
        found, read_calls, ids = read(form, pieces)
        assert read_calls == calls
        assert found.strip() == (text if content is None else content).strip()
        assert len(set(ids)) == len(calls)


def test_ids_are_what_the_models_template_takes():
    _, _, ids = read("mistral", ["[TOOL_CALLS]now{}"])
    assert len(ids[0]) == 9
    assert ids[0].isalnum()
    assert read("hermes", [WRITTEN["hermes"][2][0]])[2][0].startswith("call_")


def test_arguments_come_before_their_object_is_complete():
    parser = CallParser(FORMS["hermes"], NAMES)
    deltas = parser.push('<tool_call>{"name": "add", "arguments": {"a": 1, "b')
    assert [delta.kind for delta in deltas] == ["call", "arguments"]
    assert deltas[1].text == '{"a": 1, "b'


def test_a_call_that_is_cut_off_keeps_what_was_read():
    parser = CallParser(FORMS["hermes"], NAMES)
    parser.push('<tool_call>{"name": "add", "arguments": {"a": 1')
    assert parser.finish() == []
    parser = CallParser(FORMS["hermes"], NAMES)
    parser.push('<tool_call>{"nam')
    assert parser.finish()[0].text == '<tool_call>{"nam'


def test_the_form_is_found_in_the_template():
    assert form_of("... <tool_call> ...").name == "hermes"
    assert form_of("{{ '[TOOL_CALLS] [' }}").name == "mistral"
    assert form_of("{{ '<|python_tag|>' }}").name == "llama3"
    assert form_of("{{ messages }}") is None


TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": {"type": "object"}}}
    for name in sorted(NAMES)
]
HELLO = [{"role": "user", "content": "What is 1 + 2?"}]


@pytest.fixture
def script(client):
    """Asks a model to write a text; returns the client's answer."""

    def ask(text, model="tiny", **how):
        SCRIPTS.append(text)
        method = {"method": f"script:number={len(SCRIPTS) - 1}"}
        return client.chat.completions.create(
            **{"model": model, "messages": HELLO, "temperature": 0, "tools": TOOLS, "extra_body": method} | how
        )

    return ask


@pytest.mark.parametrize(("model", "form"), [("tiny", "hermes"), ("other", "mistral")])
def test_the_client_gets_calls_whole_and_in_pieces(script, model, form):
    text, content, calls = WRITTEN[form][1]
    choice = script(text, model).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content or "") == content
    assert [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls] == calls
    pieces = {}
    for chunk in script(text, model, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            piece = pieces.setdefault(call.index, ["", ""])
            piece[0] += call.function.name or ""
            piece[1] += call.function.arguments or ""
    assert [(name, json.loads(arguments)) for name, arguments in pieces.values()] == calls


def test_a_conversation_goes_on_after_its_calls(script, client):
    message = script(WRITTEN["hermes"][0][0]).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "3"}
    messages = [*HELLO, message.model_dump(include={"role", "content", "tool_calls"}), result]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, tools=TOOLS, temperature=0, max_completion_tokens=3
    )
    assert answer.usage.completion_tokens == 3


def test_one_call_at_most_ends_the_answer_after_it(script):
    text, _, calls = WRITTEN["hermes"][1]
    answer = script(text + " and so on" * 30, parallel_tool_calls=False)
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == [calls[0][0]]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage.completion_tokens < len(text) + 200


def test_no_tools_are_called_where_none_may_be(script):
    text = WRITTEN["hermes"][0][0]
    choice = script(text, tool_choice="none").choices[0]
    assert choice.message.tool_calls is None
    assert choice.message.content == text


def test_special_tokens_stay_unwritten_where_no_tools_were_given(script):
    text = "before [TOOL_CALLS]<|python_tag|>behind"
    assert script(text, "other", tools=None).choices[0].message.content == "before behind"
    assert script("a <|python_tag|>b", "other").choices[0].message.content == "a b"
