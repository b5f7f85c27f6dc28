"""The tasks of the steer suite, and the constraints under which texts are written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from outlay.constrain import Constraint, JsonSchema, Predicate

PERSON: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"type": "string", "minLength": 1, "maxLength": 24},
        "married": {"type": "boolean"},
    },
    "required": ["name", "age", "city", "married"],
    "additionalProperties": False,
}
JSON, DATE = "JSON schema", "date"
PEOPLE = json.dumps({"type": "array", "items": PERSON, "minItems": 40})  # longer than any text that is measured
STRINGS, LONG_STRINGS = (
    json.dumps({"type": "array", "items": {"type": "string"} | limit, "minItems": 40})
    for limit in ({}, {"maxLength": 100_000})
)
GREEDY, SAMPLE, LOOKUP = "greedy", "sample", "lookup"
OWN = "own"  # the method of a peer
DIGIT, LETTER, HEX = "[0-9]", "[a-z]", "[0-9a-f]"


@dataclass(frozen=True)
class Form:
    """A short form of text: what a model is asked, and the pattern of each of its bytes in turn.

    Nothing in it repeats without end, so a beginning is checked by `re` alone: each byte's pattern may be the last.
    """

    name: str
    prompt: str
    parts: tuple[str, ...]

    @property
    def pattern(self) -> str:
        """The regular expression of a whole text."""
        return "".join(self.parts)

    def checks(self) -> tuple[Callable[[bytes], bool], Callable[[bytes], bool]]:
        """Returns `complete_ok` and `prefix_ok`."""
        beginning = ""
        for each in reversed(self.parts):
            beginning = f"(?:{each}{beginning})?"
        whole, begun = re.compile(self.pattern.encode()), re.compile(beginning.encode())
        return lambda data: whole.fullmatch(data) is not None, lambda data: begun.fullmatch(data) is not None


FORMS = (
    Form(DATE, "When did the war end? Answer with a date, such as 2024-12-31.",
         (*[DIGIT] * 4, "-", "[01]", DIGIT, "-", "[0-3]", DIGIT)),
    Form("time", "When does the train leave? Answer with a time, such as 14:05:30.",
         ("[0-2]", DIGIT, ":", "[0-5]", DIGIT, ":", "[0-5]", DIGIT)),
    Form("IPv4 address", "Give the address of a printer, such as 10.0.0.12.",
         (DIGIT, *[f"{DIGIT}?"] * 2, *[r"\.", DIGIT, f"{DIGIT}?", f"{DIGIT}?"] * 3)),
    Form("colour", "Give a colour in hexadecimal, such as #a0b1c2.", ("#", *[HEX] * 6)),
    Form("e-mail", "Give an e-mail address, such as ann@example.com.",
         (*[LETTER] * 2, *[f"{LETTER}?"] * 8, "@", *[LETTER] * 2, *[f"{LETTER}?"] * 8, r"\.", *"com")),
    Form("telephone", "Give a number to call, such as +44-20-79460018.",
         (r"\+", DIGIT, DIGIT, "-", DIGIT, DIGIT, "-", *[DIGIT] * 8)),
    Form("version", "Which version is it? Answer as in v1.12.3.",
         ("v", DIGIT, f"{DIGIT}?", r"\.", DIGIT, f"{DIGIT}?", r"\.", DIGIT, f"{DIGIT}?")),
    Form("price", "What does it cost? Answer as in $12.50.", (r"\$", "[1-9]", *[f"{DIGIT}?"] * 4, r"\.", DIGIT, DIGIT)),
    Form("plate", "Give a number plate, such as AB-123-CD.",
         (*["[A-Z]"] * 2, "-", *[DIGIT] * 3, "-", *["[A-Z]"] * 2)),
    Form("person", 'Describe a person, such as {"name": "ann", "age": 31}.',
         (r"\{", *'"name": "', *[LETTER] * 2, *[f"{LETTER}?"] * 8, *'", "age": ', "[1-9]", DIGIT, r"\}")),
)  # fmt: skip
PROMPTS = {JSON: "Describe a person as JSON with name, age, city and married.", DATE: FORMS[0].prompt}


@cache
def constraint_of(name: str) -> Constraint:
    """Returns the constraint of a task: the schema of a person, or the predicate of a form."""
    return JsonSchema(dict(PERSON)) if name == JSON else Predicate(*form(name).checks())


def form(name: str) -> Form:
    """Returns a form by its name."""
    return next(each for each in FORMS if each.name == name)


@dataclass(frozen=True)
class Texts:
    """`count` texts at temperature 1 under a constraint, by a method of ours with its options, or a peer's own."""

    constraint: str
    method: str
    prompt: tuple[int, ...]
    count: int
    max_tokens: int


@dataclass(frozen=True)
class Checks:
    """One text of a form, whose checker is asked by AWRS or by masks."""

    form: str
    method: str
    prompt: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class Pace:
    """`new` tokens under a schema, as JSON, or under none (""). No text ends before."""

    schema: str
    method: str
    temperature: float
    prompt: tuple[int, ...]
    new: int


@dataclass(frozen=True)
class FirstMask:
    """A schema of this many properties: from its text to the first mask of the model's vocabulary."""

    properties: int
    repeats: int = 5

    @property
    def schema(self) -> str:
        """The schema as JSON: strings, numbers, lists and choices in turn."""
        kinds: list[Any] = [
            {"type": "string", "maxLength": 40},
            {"type": "number", "minimum": 0},
            {"type": "array", "items": {"type": "integer"}, "maxItems": 5},
            {"enum": ["red", "green", "blue"]},
        ]
        names = [f"property_{number}" for number in range(self.properties)]
        properties = {name: kinds[place % len(kinds)] for place, name in enumerate(names)}
        return json.dumps({"type": "object", "properties": properties, "required": names[::2]})


SteerTask = Texts | Checks | Pace | FirstMask
