"""Further kinds of constraints, those of other packages, and what is said of one before a run."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from constraint_states import BYTES, accepts, byte_token, state_of
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from outlay import UsageError
from outlay.cli import main
from outlay.cli.prompts import read_prompts
from outlay.constrain import After, Choice, JsonSchema, PythonSyntax, Regex, TokenPaths, constraint_of, kinds
from outlay.constrain.describe import example, only_checked, unknown_keywords
from outlay.testing import tiny_lm

CALL = After("<call>", JsonSchema({"type": "array", "items": {"type": "integer"}, "maxItems": 2}), "</call>")


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (PythonSyntax(), ["x = 1", "def f(a):\n    return a\n", '"""\nx\n"""', "[\n1]"], ["x = ", "def f(\n", "1 1"]),
        (CALL, ["free", "a <call", "so: <call>[1,2]</call> and", "<call>[]</call><call>[1]</call>"],
         ["<call>", "<call>[1]", '<call>["a"]</call>', "<call>[1]</call", "a<call>b</call>"]),
        (After("=", Regex("[0-9]+")), ["=1", "x=12", "x"], ["x=", "x=a", "=1=2"]),
        (After("=", Choice("a"), required=True), ["b=a"], ["b", "=b"]),
        (TokenPaths(map(BYTES.encode, ["ab", "abc", "x"])), ["ab", "abc", "x"], ["a", "y", "abx"]),
    ],
)  # fmt: skip
def test_texts_are_accepted_and_refused_and_the_check_says_the_same(constraint, good, bad):
    for text in good:
        assert accepts(constraint, text), text
        assert constraint.check(text)
    for text in bad:
        assert not accepts(constraint, text), text
        assert not constraint.check(text)


@pytest.mark.parametrize("constraint", [CALL, After("ab", Regex("a*b?")), PythonSyntax()])
@pytest.mark.parametrize("beginning", ["", "a <cal", "<call>", "<call>[1", "<call>[1]", "<call>[1]</c", "a", "ab"])
def test_the_mask_is_what_single_tokens_say(constraint, beginning):
    state = state_of(constraint, beginning)
    if state is None:
        return
    mask = state.mask()
    assert mask[256] == state.ends()
    assert mask[:256].tolist() == [state.after(token) is not None for token in range(256)]


def test_a_wrong_line_of_python_is_refused_when_it_ends():
    assert state_of(PythonSyntax(), "x = = 1") is not None
    assert state_of(PythonSyntax(), "x = = 1\n") is None
    assert state_of(PythonSyntax(), "def f():\n  return (1,\n") is not None
    assert state_of(PythonSyntax(), "def f():\n    x\n  y\n") is None


def test_what_stands_behind_a_mark_is_written_as_the_constraint_says():
    for method in ("greedy", "lookup", "sample"):
        result = tiny_lm().generate(
            "Say", constraint=After("a", Choice("bcd"), required=True), method=method, max_tokens=400, seed=3,
            temperature=1.5 if method == "sample" else 0.0, logit_bias={byte_token(ord("a")): 4.0},
        )  # fmt: skip
        if result.finish_reason == "stop":
            assert re.fullmatch("[^a]*abcd", result.text, re.DOTALL)
        assert result.facts["valid"] == (result.finish_reason == "stop")


def test_paths_of_tokens_may_hold_special_tokens_and_are_forced_where_there_is_one():
    paths = TokenPaths([[256, 65], [66, 67, 68]])  # 256 is the end token of this model, special
    state = paths.begin(_vocabulary())
    assert state.mask()[[256, 66]].all()
    assert state.mask().sum() == 2
    assert state.after(66).forced() == [67, 68]
    assert paths.unwritable(_vocabulary()) == frozenset()
    with pytest.raises(UsageError, match="none of them empty"):
        TokenPaths([[]])
    with pytest.raises(UsageError, match="token 999"):
        TokenPaths([[999]]).begin(_vocabulary())


def _vocabulary():
    from outlay.constrain.vocabulary import vocabulary_of

    return vocabulary_of(BYTES, 257)


def test_another_package_adds_a_kind(monkeypatch):
    monkeypatch.setattr(kinds, "entry_points", lambda **named: [EntryPoint("rows", "fractions:Fraction", "outlay")])
    with pytest.raises(UsageError, match="which is no constraint"):
        constraint_of("rows:3")
    monkeypatch.setattr(
        kinds,
        "entry_points",
        lambda **named: [EntryPoint("any", "outlay.constrain:Regex", "outlay")][: "name" in named],
    )
    assert constraint_of("any:[ab]:c") == Regex("[ab]:c")
    assert isinstance(constraint_of("python_syntax"), PythonSyntax)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2},
        "kind": {"enum": ["a", "b"]},
        "age": {"type": "integer"},
    },
    "required": ["name", "kind"],
    "if": {"properties": {"kind": {"const": "b"}}},
    "then": {"required": ["age"]},
    "not": {"properties": {"kind": {"const": "a"}}},
    "maximun": 3,
    "$defs": {"x": {"tyep": "string"}},
}


def test_examples_satisfy_their_constraint_also_where_masks_know_less():
    for constraint in (JsonSchema(SCHEMA), Regex("[0-9]{4}-[ab]+ [a-z]+ b"), PythonSyntax(), Choice("", "a"), CALL):
        text = example(constraint)
        assert constraint.check(text)
    text = example(JsonSchema(SCHEMA))
    assert json.loads(text)["kind"] == "b"
    assert text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)  # no white space between


def test_unknown_keywords_are_named_with_their_place_and_names_of_properties_are_none():
    assert list(unknown_keywords(SCHEMA)) == ["$.maximun", "$.$defs.x.tyep"]
    assert list(unknown_keywords({"properties": {"tyep": True}, "const": {"tyep": 1}})) == []
    assert "not" in " ".join(only_checked(JsonSchema(SCHEMA) & Regex(".*")))


def test_the_command_says_what_is_masked_and_shows_an_example(tmp_path, capsys):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    assert main(["constraint", str(file)]) == 0
    shown = capsys.readouterr().out
    for part in ("JsonSchema", "in part", '"if"', '"not"', "$.maximun", "example    {"):
        assert part in shown
    assert main(["constraint", "regex:[ab]{3}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["masked"] is True
    assert re.fullmatch("[ab]{3}", found["example"])
    assert main(["constraint", "regex:[ab"]) == 2
    assert "unclosed" in capsys.readouterr().err


def test_a_line_of_a_prompt_file_has_its_own_constraint(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "a", "constraint": "regex:b"},
        {"prompt": "c", "constraint": {"type": "integer"}},
        {"prompt": "d"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    read = read_prompts(None, str(file), lines=True)
    assert [options.get("constraint") for _, options in read] == ["regex:b", {"type": "integer"}, None]
    file.write_text(json.dumps({"prompt": "a", "constraint": 3}))
    with pytest.raises(UsageError, match=r'"constraint" in line 1 .*must be a name or a JSON schema'):
        read_prompts(None, str(file), lines=True)


@pytest.mark.parametrize("count", [12, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_text_that_is_invalid_is_returned_as_valid_under_random_constraints(count):
    """Random schemas and patterns, checked by `jsonschema-rs` and `re`, which masks and checks know nothing of."""
    rs = pytest.importorskip("jsonschema_rs")
    lm, found = tiny_lm(), {"valid": 0, "refused": 0, "cut": 0}
    classes = st.sampled_from(["[a-c]", "[0-9]", "x", "(ab|c)", "[^a]", "ä"])
    patterns = st.lists(st.tuples(classes, st.sampled_from(["", "?", "{2}", "{1,3}", "+"])), min_size=1, max_size=4)

    @seed(5)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(random_schema() | patterns.map(lambda parts: "".join(map("".join, parts))), st.integers(0, 1 << 30))
    def generate(given_one, number):
        try:
            constraint = Regex(given_one) if isinstance(given_one, str) else JsonSchema(given_one)
            result = lm.generate("Say", constraint=constraint, max_tokens=120, seed=number,
                                 method=("greedy", "lookup", "sample")[number % 3],
                                 temperature=1.0 if number % 3 == 2 else 0.0)  # fmt: skip
        except UsageError:
            found["refused"] += 1
            return
        if not result.facts["valid"]:
            found["cut"] += 1
            assert result.finish_reason != "stop"
            return
        found["valid"] += 1
        if isinstance(given_one, str):
            assert re.fullmatch(given_one, result.text, re.DOTALL)
        else:
            assert rs.validator_for(given_one).is_valid(json.loads(result.text))

    generate()
    print(found)
    assert found["valid"] > 0.3 * count


def random_schema():
    """Small schemas with keywords that masks know, and some that are checked alone."""
    numbers = st.integers(-5, 20)
    leaf = st.one_of(
        st.fixed_dictionaries({"type": st.just("integer")}, optional={"minimum": numbers, "multipleOf": st.just(3)}),
        st.fixed_dictionaries({"type": st.just("string")}, optional={"maxLength": st.integers(1, 6)}),
        st.fixed_dictionaries(
            {"enum": st.lists(st.sampled_from([1, "a", None, True, [2]]), min_size=1, unique_by=str)}
        ),
        st.fixed_dictionaries({"type": st.just("boolean")}, optional={"not": st.just({"const": False})}),
        st.just({"type": "null"}),
    )
    return st.recursive(leaf, _compound, max_leaves=4)


def _compound(inner):
    keys = st.lists(st.sampled_from(["a", "b", "c"]), unique=True, max_size=2)
    return st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from(["a", "b", "c"]), inner)},
            optional={"required": keys, "additionalProperties": st.just(False), "minProperties": st.integers(0, 2)},
        ),
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner, "maxItems": st.integers(0, 3)},
            optional={"uniqueItems": st.booleans(), "minItems": st.integers(0, 2)},
        ),
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"oneOf": st.lists(inner, min_size=2, max_size=2)}),
    )


def test_masks_are_bools_of_the_whole_vocabulary():
    for constraint in (CALL, PythonSyntax(), TokenPaths([[1]])):
        mask = constraint.begin(_vocabulary()).mask()
        assert mask.dtype == np.bool_
        assert mask.shape == (257,)
