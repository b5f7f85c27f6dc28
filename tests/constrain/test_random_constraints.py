"""Texts under random constraints, by several methods: what is called valid is valid for validators of other authors."""

from __future__ import annotations

import json
import re
from collections import Counter

import jsonschema_rs
import pytest
from constraint_states import byte_token
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outlay.constrain import JsonSchema, Regex
from outlay.errors import UsageError
from outlay.testing import tiny_lm

GREEDY = ("greedy", "lookup", "beam:width=2", "aded")
SAMPLED = ("sample", "best_of:n=2", "awrs:particles=2", "speculative", "rejection:draws=2")
METHODS = st.sampled_from([*((method, 0.0) for method in GREEDY), *((method, 1.0) for method in SAMPLED)])
NAMES = st.sampled_from(["a", "bc", "\u00e4"])
SMALL = st.integers(0, 4)
# A random model seldom ends a string, a list or a text by itself.
ENDING = {byte_token(byte): 3.0 for byte in b'"]}'} | {256: 4.0}
SOME, MANY = 60, 1000


def schemas_of(depth):
    """Schemas that are nested at most this deep, of keywords that masks know and of some that are only checked."""
    leaves = st.one_of(
        st.sampled_from([True, {}]),
        _schema(type=st.sampled_from(["null", "boolean"])),
        _schema({"minimum": SMALL, "maximum": st.integers(3, 40), "multipleOf": st.sampled_from([2, 3])},
                type=st.just("integer")),
        _schema({"minLength": SMALL, "maxLength": SMALL, "pattern": st.sampled_from(["^[ab]+$", "^[0-9]{2}", "x"])},
                type=st.just("string")),
        _schema(enum=st.lists(st.sampled_from([1, "x", None, [1], {"a": 2}]), min_size=1, max_size=3, unique_by=str)),
    )  # fmt: skip
    if depth == 0:
        return leaves
    below = schemas_of(depth - 1)
    several = st.lists(below, min_size=1, max_size=2)
    lists = {"items": below, "contains": below, "prefixItems": several, "uniqueItems": st.booleans(),
             "minItems": SMALL, "maxItems": SMALL}  # fmt: skip
    objects = {
        "properties": st.dictionaries(NAMES, below, max_size=3),
        "required": st.lists(NAMES, max_size=2, unique=True),
        "additionalProperties": below,
        "propertyNames": st.sampled_from([{"maxLength": 2}, {"pattern": "^[a-c]"}]),
        "minProperties": SMALL,
    }
    return st.one_of(
        leaves,
        _schema(lists, type=st.just("array")),
        _schema(objects, type=st.just("object")),
        *(_schema(**{word: several}) for word in ("anyOf", "oneOf", "allOf")),
        st.fixed_dictionaries({"if": below}, optional={"then": below, "else": below}),
        st.fixed_dictionaries({"not": below}),
    )


def _schema(optional=None, **always):
    return st.fixed_dictionaries(always, optional=optional)


def patterns():
    """Regular expressions that Rust's and Python's syntax read alike.

    Digits are named one by one: what `\\d` matches depends on the version of Unicode, of which Rust's may be newer.
    """
    pieces = st.sampled_from(["a", "b", "-", "[0-9]", "[a-c]", "[^x]", "\u00e4", "(?:ab|c)", "x?"])
    counted = st.tuples(pieces, st.sampled_from(["", "", "{2}", "{1,3}", "?"])).map(_counted)
    rows = st.lists(counted, min_size=1, max_size=5).map("".join)
    return st.lists(rows, min_size=1, max_size=3).map(lambda rows: "|".join(f"(?:{row})" for row in rows))


def _counted(both):
    piece, count = both
    return f"(?:{piece}){count}"


def gone_through(strategy, constraint_of, is_valid, amount):
    """Generates under `amount` random constraints; returns how many came out valid, not valid, or were refused
    because no text satisfies them."""
    lm, seen = tiny_lm(max_runs=8), Counter()

    @settings(max_examples=amount, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(strategy, METHODS, st.integers(0, 1000))
    def generate(described, method, seed):
        name, temperature = method
        try:
            constraint = constraint_of(described)
            result = lm.generate(
                "Say", constraint=constraint, method=name, temperature=temperature, seed=seed, max_tokens=60,
                logit_bias=ENDING, draft="lookup" if name == "speculative" else None,
            )  # fmt: skip
        except UsageError as error:
            if not str(error).startswith("no text satisfies"):
                raise
            seen["refused"] += 1
            return
        if result.finish_reason == "stop" or result.facts["valid"]:
            assert result.facts["valid"], (described, name, result.text)
            assert is_valid(described, result.text), (described, name, result.text)
        seen["valid" if result.facts["valid"] else "not valid"] += 1

    generate()
    return seen


def satisfies(schema, text):
    return jsonschema_rs.validator_for(schema).is_valid(json.loads(text))


@pytest.mark.parametrize("amount", [SOME, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_no_text_under_a_random_schema_is_called_valid_that_another_validator_refuses(amount):
    seen = gone_through(schemas_of(2), JsonSchema, satisfies, amount)
    print(f"random schemas: {dict(seen)}")
    assert seen["valid"] > amount / 3


@pytest.mark.parametrize("amount", [SOME, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_no_text_under_a_random_pattern_is_called_valid_that_python_does_not_match(amount):
    seen = gone_through(patterns(), Regex, re.fullmatch, amount)
    print(f"random patterns: {dict(seen)}")
    assert seen["valid"] > amount / 3
