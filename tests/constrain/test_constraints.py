"""Constraints over tokens: what they allow, where they end, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from constraint_states import BYTES, accepts, byte_token, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from outlay.bench.steer.official import CASES, graded
from outlay.constrain import Choice, Grammar, Json, JsonSchema, Predicate, Regex, constraint_of
from outlay.constrain.constraint import compile_constraint
from outlay.errors import UsageError
from outlay.models.tokenizer import Tokenizer

PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def pieces(*words):
    """A sentencepiece vocabulary with byte fallback; it drops the first space of a text."""
    names = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    inner = tokenizers.Tokenizer(
        models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<unk>", "</s>"])
    return Tokenizer(inner, eos_token_ids=(1,))


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (Json(), ['{"a": [1, null]}', "3"], ["{", "NaN", "{'a': 1}"]),
        (JsonSchema(PERSON), ['{"age": 3}'], ['{"age": "x"}', "{}"]),
        (Regex(r"\d{2}-[äb]+"), ["12-ä", "12-bä"], ["12-", "1-b"]),
        (Grammar('start: "a" n\nn: /[0-9]+/'), ["a1", "a23"], ["a", "b1"]),
        (Grammar('root ::= "x" [0-9]+'), ["x1"], ["x"]),
        (Choice("yes", "no", "nö"), ["yes", "no", "nö"], ["n", "ye", "maybe"]),
        (Predicate(lambda data: data.endswith(b".")), ["a.", "漢."], ["a"]),
        (Regex(r"[a-c]+") & Regex(r"[b-d]{2}"), ["bc"], ["ab", "b", "dd"]),
    ],
)
def test_texts_are_accepted_and_refused_and_the_check_says_the_same(constraint, good, bad):
    for text in good:
        assert accepts(constraint, text)
        assert constraint.check(text)
    for text in bad:
        assert not accepts(constraint, text)
        assert not constraint.check(text)


@pytest.mark.parametrize(
    "constraint", [Json(), Regex("(ä|b)+"), Choice("äb", "ä"), Predicate(lambda d: True, lambda d: b"x" not in d)]
)
@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_mask_is_what_single_tokens_say_after_any_beginning(constraint, seed):
    random = np.random.default_rng(seed)
    state = compile_constraint(constraint, BYTES, 257).state
    for _ in range(4):
        mask = state.mask()
        assert mask[256] == state.ends()
        assert mask[:256].tolist() == [state.after(token) is not None for token in range(256)]
        if not mask[:256].any():
            break
        state = state.after(int(random.choice(mask[:256].nonzero()[0])))


def test_an_unfinished_character_is_open_and_a_wrong_byte_is_refused():
    for constraint in (Predicate(lambda data: True), Json(), Regex(".*")):
        beginning = b'"\xc3' if isinstance(constraint, Json) else b"\xc3"
        state = state_of(constraint, beginning)
        assert state is not None
        assert not state.ends()
        assert state.after(byte_token(0xA4)) is not None
        assert state.after(byte_token(ord("a"))) is None


@pytest.mark.parametrize("constraint", [Choice("red", " red"), Regex(" ?red"), Predicate(lambda d: d == b"red")])
def test_a_sentencepiece_text_loses_its_first_space_alone(constraint):
    tokenizer = pieces("\u2581red", "red", "\u2581", "\u2581\u2581red")
    state = compile_constraint(constraint, tokenizer, 262 + 3).state
    first = state.mask()
    assert first[[258, 259, 260]].all()
    assert first.tolist()[:1] + first.tolist()[262:] == [False] * 4  # <unk>, and ids that no token has
    for token in (258, 259):
        assert state.after(token).ends()
        assert tokenizer.decode([token]) == "red"
    assert state.after(260).after(259).ends()
    for token in range(262):
        assert bool(first[token]) == (state.after(token) is not None or (token == 1 and state.ends()))


def test_what_must_follow_is_known():
    assert bytes(BYTES.bytes_of(t)[0] for t in state_of(Choice("yellow", "yelp"), "y").forced()) == b"el"
    forced = state_of(JsonSchema({**PERSON, "additionalProperties": False}), '{"').forced()
    assert b"".join(BYTES.bytes_of(token) for token in forced).startswith(b'age"')


def test_what_masks_do_not_know_is_named_and_checked_at_the_end():
    schema = JsonSchema({"type": "object", "not": {"required": ["b"]}})
    assert "not" in " ".join(schema.checked)
    assert accepts(schema, '{"a": 1}')
    assert not accepts(schema, '{"b": 1}')


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regex("a[bc"), "unclosed character class"),
        (lambda: Regex("a(?=b)"), "look-around"),
        (lambda: Grammar('start: "a" c'), 'unknown name: "c"'),
        (lambda: JsonSchema("{"), "not JSON"),
        (lambda: JsonSchema([1]), "an object, true or false"),
        (lambda: JsonSchema({"type": "strong"}), r"wrong at \$.type"),
        (lambda: JsonSchema({"type": "string", "enum": [1]}), "no text satisfies"),
        (lambda: JsonSchema(False), "no text satisfies"),
        (lambda: Choice(), "one text or more"),
        (lambda: state_of(Predicate(lambda data: 1), ""), "must return True or False, not 1, for b''"),
        (lambda: state_of(Predicate(lambda data: 1 / 0), ""), "raised ZeroDivisionError"),
        (lambda: compile_constraint(Choice("ä"), pieces("a"), 30), "no text satisfies"),
        (lambda: constraint_of("rexeg:a"), "is not known; give json, regex:PATTERN"),
        (lambda: constraint_of("schema:/no/such/file"), "can't be read"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_sample_of_the_official_suite_has_nothing_accepted_wrongly():
    counts = graded([CASES / f"{name}.json" for name in ("if-then-else", "not", "minLength", "enum", "required")])
    assert counts["accepted wrongly"] == 0
    assert counts["right"] >= 0.85 * sum(counts.values())


@pytest.mark.slow
def test_the_official_suite_is_right_in_1150_cases_and_accepts_nothing_wrongly():
    counts = graded()
    print(counts)
    assert counts["accepted wrongly"] == 0
    assert counts["right"] >= 1150
