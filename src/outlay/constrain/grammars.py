"""Constraints with an automaton: JSON, JSON Schema, regular expressions, and Lark or GBNF grammars, by `llguidance`."""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from outlay.constrain.constraint import Constraint, Mask, State, end_mask
from outlay.constrain.vocabulary import Vocabulary
from outlay.errors import UsageError

INSTALL = "constraints need llguidance and jsonschema: pip install 'outlay[constrain]'"
WHITE_SPACE = r"[ \t]?|\n[ \t]{0,16}"  # between the tokens of JSON; endless white space would never end a text


class _Automaton(Constraint):
    """What llguidance compiles; a subclass gives the grammar."""

    @property
    @abstractmethod
    def grammar(self) -> str:
        """The grammar, as llguidance reads it."""

    @property
    def masks_all(self) -> bool:
        return True

    def allows(self, text: str) -> bool:
        """Tells whether a complete text may end; asked at each possible end. By default the grammar alone decides."""
        return True

    def begin(self, vocabulary: Vocabulary) -> State:
        return _AutomatonState(self, vocabulary, _matcher(self.grammar, vocabulary, first=False), b"", True)


class _AutomatonState(State):
    def __init__(self, owner: _Automaton, vocabulary: Vocabulary, matcher: Any, data: bytes, first: bool) -> None:
        self._owner, self._vocabulary, self._matcher, self._data = owner, vocabulary, matcher, data
        self._first = first

    def after(self, token: int) -> State | None:
        if token in self._vocabulary.special:
            return None
        data = self._vocabulary.written(token, self._first)
        tokens = [token] if data == self._vocabulary.bytes[token] else self._vocabulary.longest_match(data)
        if b"".join(self._vocabulary.bytes[each] for each in tokens) != data:
            return None
        matcher = self._matcher.deep_copy()
        if tokens and matcher.try_consume_tokens(tokens) < len(tokens):
            return None
        return _AutomatonState(self._owner, self._vocabulary, matcher, self._data + data, False)

    def mask(self) -> Mask:
        matcher, strips = self._matcher, self._first and self._vocabulary.strips
        if strips:  # other bytes stand for the tokens
            matcher = _matcher(self._owner.grammar, self._vocabulary, first=True)
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        mask = np.zeros(self._vocabulary.size, dtype=bool)
        allowed = np.unpackbits(bits, bitorder="little")[: self._vocabulary.size]
        mask[: len(allowed)] = allowed
        mask[list(self._vocabulary.special)] = False
        if strips:
            mask[self._vocabulary.ids.get(b" ", [])] = True  # it writes nothing here
        return mask | end_mask(self._vocabulary, self.ends())

    def ends(self) -> bool:
        if not self._matcher.is_accepting():
            return False
        try:
            return self._owner.allows(self._data.decode())
        except UnicodeDecodeError:
            return False

    def forced(self) -> list[int]:
        if self._first and self._vocabulary.strips:
            return []
        return self._vocabulary.longest_match(self._matcher.compute_ff_bytes())


@dataclass(frozen=True)
class Regex(_Automaton):
    """A text that a regular expression matches whole, in the syntax of Rust's `regex`."""

    pattern: str

    def __post_init__(self) -> None:
        _validated(self.grammar, f"the regular expression {self.pattern!r}")

    @cached_property
    def grammar(self) -> str:
        """The grammar, as llguidance reads it."""
        return str(_llguidance().LLMatcher.grammar_from_regex(self.pattern))

    def check(self, text: str) -> bool:
        # Not by `re`: the two know digits and letters of different versions of Unicode.
        return _replayed(self.grammar, text)


@dataclass(frozen=True)
class Grammar(_Automaton):
    """A text of a context-free grammar, in Lark's syntax or llama.cpp's (GBNF)."""

    source: str

    def __post_init__(self) -> None:
        _validated(self.grammar, "the grammar")

    @cached_property
    def grammar(self) -> str:
        """The grammar, as llguidance reads it."""
        from llguidance.gbnf_to_lark import any_to_lark

        try:
            lark = any_to_lark(self.source)
        except Exception as error:  # its parser raises bare exceptions
            raise UsageError(f"the grammar is neither Lark nor GBNF: {error}") from None
        return str(_llguidance().LLMatcher.grammar_from_lark(lark))

    def check(self, text: str) -> bool:
        return _replayed(self.grammar, text)


class JsonSchema(_Automaton):
    """JSON that a schema (draft 2020-12) describes.

    What llguidance can express is masked. All of the schema is checked by `jsonschema` before the text may end.

    Args:
        schema: The schema: a dict, a bool, or its JSON.

    Attributes:
        checked: What is only checked, one line each: keywords that masks don't know.
    """

    def __init__(self, schema: Any) -> None:
        self.schema = _read(schema)
        self._validator = _validator(self.schema)
        self.grammar_text, self.checked = _schema_grammar(self.schema)

    def __repr__(self) -> str:
        return f"JsonSchema({json.dumps(self.schema)})"

    @property
    def grammar(self) -> str:
        """The grammar, as llguidance reads it."""
        return self.grammar_text

    @property
    def masks_all(self) -> bool:
        return not self.checked

    def allows(self, text: str) -> bool:
        return self.check(text)

    def check(self, text: str) -> bool:
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except ValueError:
            return False
        try:
            return bool(self._validator.is_valid(value))
        except Exception as error:  # references are resolved only now
            raise UsageError(f"the JSON schema can't be checked: {error}") from None


class Json(JsonSchema):
    """Any JSON value."""

    def __init__(self) -> None:
        super().__init__({})


def _schema_grammar(schema: Any) -> tuple[str, tuple[str, ...]]:
    """Returns the grammar of a schema, and what it leaves to the check."""
    matcher, overrides = _llguidance().LLMatcher, {"lenient": True, "whitespace_pattern": WHITE_SPACE}
    if schema is False:
        raise UsageError("no text satisfies the schema false")
    masked = {} if schema is True else schema
    grammar = matcher.grammar_from_json_schema(json.dumps(masked), overrides=overrides)
    wrong, notes = matcher.validate_grammar_with_warnings(grammar)
    if not wrong:
        return str(grammar), tuple(note.replace("Unimplemented keys:", "the keywords") for note in notes)
    if any("Unsatisfiable" in note for note in notes):
        raise UsageError(f"no text satisfies the JSON schema: {notes[0]}")
    plain = matcher.grammar_from_json_schema("{}", overrides=overrides)
    return str(plain), (f"the whole schema: {notes[0]}",)


def _read(schema: Any) -> Any:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise UsageError(f"the JSON schema is not JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise UsageError(f"a JSON schema is an object, true or false, not {type(schema).__name__}")
    return schema


def _validator(schema: Any) -> Any:
    try:
        from jsonschema import Draft202012Validator, SchemaError
        from jsonschema_specifications import REGISTRY
        from referencing.jsonschema import DRAFT202012
    except ImportError:
        raise UsageError(INSTALL) from None
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise UsageError(f"the JSON schema is wrong at {error.json_path}: {error.message}") from None
    whole = DRAFT202012.create_resource(schema)
    _resolve(REGISTRY.resolver_with_root(whole), whole)
    # With a registry of its own the validator asks no network and no file for schemas that are referred to.
    return Draft202012Validator(schema, registry=REGISTRY)


def _resolve(resolver: Any, schema: Any) -> None:
    """Raises `UsageError` for a reference that leads out of the schema."""
    from referencing.exceptions import Unresolvable

    given = schema.contents
    for name in ("$ref", "$dynamicRef") if isinstance(given, dict) else ():
        if isinstance(given.get(name), str):
            try:
                resolver.lookup(given[name])
            except Unresolvable:
                raise UsageError(f"the JSON schema refers to {given[name]!r}, which is not in it") from None
    for each in schema.subresources():
        _resolve(resolver.in_subresource(each), each)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise UsageError(INSTALL) from None
    return llguidance


def _validated(grammar: str, what: str) -> None:
    wrong, notes = _llguidance().LLMatcher.validate_grammar_with_warnings(grammar)
    if wrong:
        raise UsageError(f"{what} can't be read: {' '.join(notes[0].split())}")


class _Tokens:
    """A vocabulary as llguidance wants to see it. Its matchers are given tokens, so it never encodes a text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, first: bool) -> None:
        self.tokens = vocabulary.at_beginning if first else vocabulary.bytes
        self.special_token_ids = sorted(vocabulary.special)
        self.eos_token_id = min(vocabulary.eos, default=vocabulary.size - 1)
        self._vocabulary = vocabulary

    def __call__(self, text: str) -> list[int]:
        return self._vocabulary.longest_match(text.encode())


_TOKENIZERS: WeakKeyDictionary[Vocabulary, dict[bool, Any]] = WeakKeyDictionary()


def _matcher(grammar: str, vocabulary: Vocabulary, first: bool) -> Any:
    library, known = _llguidance(), _TOKENIZERS.setdefault(vocabulary, {})
    if first not in known:
        known[first] = library.LLTokenizer(_Tokens(vocabulary, first))
    matcher = library.LLMatcher(known[first], grammar, log_level=0)
    if matcher.is_error():
        raise UsageError(f"the constraint can't be compiled: {' '.join(matcher.get_error().split())}")
    return matcher


def _replayed(grammar: str, text: str) -> bool:
    """Tells whether a grammar accepts a text, byte by byte from its beginning."""
    data, matcher = text.encode(), _byte_matcher(grammar).deep_copy()
    return matcher.try_consume_tokens(list(data)) == len(data) and bool(matcher.is_accepting())


@lru_cache(maxsize=64)
def _byte_matcher(grammar: str) -> Any:
    """Returns a matcher over single bytes, at the beginning of a text."""
    library = _llguidance()
    return library.LLMatcher(library.LLTokenizer("byte"), grammar, log_level=0)
