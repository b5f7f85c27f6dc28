"""What can be said of a constraint before a run: what of it is masked, what only checked, and a text that it allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from outlay.constrain.constraint import Both, Constraint, State
from outlay.constrain.grammars import JsonSchema
from outlay.constrain.parts import After
from outlay.constrain.texts import Predicate
from outlay.constrain.vocabulary import Vocabulary

WALKS = 400  # texts that are drawn for an example at most
ENOUGH = 12  # texts of which the shortest is the example
LONGEST = 400  # bytes of an example
ENDING = b"\"}])',:"  # bytes that are tried first: they end what is open
WORD = b"abcdefghijklmnopqrstuvwxyz0123456789-_"  # and before others within a string
WHITE = b" \t\r\n"  # what JSON needs nowhere
# Keywords of draft 2020-12 that no validator of their own stands for, and those that hold schemas.
ANNOTATIONS = frozenset(
    {
        "$schema", "$id", "$ref", "$anchor", "$dynamicRef", "$dynamicAnchor", "$vocabulary", "$comment", "$defs",
        "definitions", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "format",
        "contentEncoding", "contentMediaType", "contentSchema", "then", "else", "minContains", "maxContains",
    }
)  # fmt: skip
ONE = frozenset(
    {
        "not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames", "unevaluatedItems",
        "unevaluatedProperties", "contentSchema",
    }
)  # fmt: skip
SEVERAL = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})


class ByteVocabulary(Vocabulary):
    """A vocabulary of all single bytes and an end token, for constraints that no model is at hand for."""

    def __init__(self) -> None:
        self.size, self.eos, self.special, self.strips = 257, frozenset({256}), frozenset({256}), False
        self.bytes = [*(bytes([byte]) for byte in range(256)), b""]


def only_checked(constraint: Constraint) -> list[str]:
    """Returns what of a constraint masks don't know, one line each; it is checked where a text could end."""
    if isinstance(constraint, Both):
        return [*only_checked(constraint.left), *only_checked(constraint.right)]
    if isinstance(constraint, After):
        return only_checked(constraint.inner)
    if isinstance(constraint, JsonSchema):
        return list(constraint.checked)
    if isinstance(constraint, Predicate) and constraint.prefix_ok is None:
        return ["complete_ok, since there is no prefix_ok that says which beginnings lead on"]
    return []


def unknown_keywords(schema: Any, path: str = "$") -> Iterator[str]:
    """Yields the places of keywords that JSON Schema (draft 2020-12) doesn't know, and so says nothing about."""
    from jsonschema import Draft202012Validator

    known = ANNOTATIONS | set(Draft202012Validator.VALIDATORS)
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        place = f"{path}.{keyword}"
        if keyword not in known:
            yield place
        elif keyword in ONE:
            yield from unknown_keywords(value, place)
        elif keyword in SEVERAL and isinstance(value, list):
            for number, each in enumerate(value):
                yield from unknown_keywords(each, f"{place}[{number}]")
        elif keyword in NAMED and isinstance(value, dict):
            for name, each in value.items():
                yield from unknown_keywords(each, f"{place}.{name}")


def example(constraint: Constraint) -> str | None:
    """Returns a text that a constraint allows, the shortest of some random ones; None where none was found."""
    begin, random, found = constraint.begin(ByteVocabulary()), Random(0), list[str]()
    words = [name.encode() for name in _properties(constraint.schema)] if isinstance(constraint, JsonSchema) else []
    for _ in range(WALKS):
        text = _walk(constraint, begin, random, words)
        if text is not None:
            found.append(text)
        if len(found) == ENOUGH:
            break
    return min(found, key=len, default=None)


def _walk(constraint: Constraint, state: State, random: Random, words: Sequence[bytes]) -> str | None:
    """Draws a text byte by byte, each choice half as likely as the one before it; None where it comes to no end."""
    data = b""
    while len(data) <= LONGEST:
        if state.ends() and constraint.check(data.decode(errors="replace")):
            return data.decode()
        choices = list(_choices(state, data, words, json=isinstance(constraint, JsonSchema)))
        while choices:
            byte = choices.pop(min(int(random.expovariate(math.log(2))), len(choices) - 1))
            after = state.after(byte)
            if after is not None:
                break
        else:
            return None
        state, data = after, data + bytes([byte])
    return None


def _choices(state: State, data: bytes, words: Sequence[bytes], *, json: bool) -> Iterator[int]:
    """Yields the bytes that may follow `data`: those that go on with a word, those that end what is open, the rest."""
    forced = state.forced()
    if forced:
        yield forced[0]
        return
    allowed = set(state.mask()[:256].nonzero()[0].tolist())
    begun = data[data.rfind(b'"') + 1 :]
    going_on = [word[len(begun)] for word in words if word.startswith(begun) and len(word) > len(begun)]
    if not json:
        order = [*ENDING, *b" ", *range(0x30, 0x7F), *range(256)]
    elif data.count(b'"') % 2:  # within a string
        order = [*going_on, *b'"', *WORD, *range(256)]
    else:
        order = [*going_on, *ENDING, *range(0x30, 0x7F), *(byte for byte in range(256) if byte not in WHITE)]
        order += () if allowed - set(WHITE) else WHITE
    for byte in dict.fromkeys(order):
        if byte in allowed:
            yield byte


def _properties(schema: Any) -> Iterator[str]:
    """Yields the names of all properties that stand in a schema."""
    if isinstance(schema, dict):
        yield from (name for name in schema.get("properties") or () if isinstance(schema.get("properties"), dict))
        for value in schema.values():
            yield from _properties(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _properties(value)
