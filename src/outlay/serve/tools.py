"""Tool calls in the form that a model writes them, read piece by piece as the text grows.

Three forms are read. Hermes and Qwen: a JSON object between `<tool_call>` and `</tool_call>`. Llama 3: the text is an
object with "name" and "parameters", maybe after `<|python_tag|>`. Mistral: after `[TOOL_CALLS]` a list of objects, or
names with their arguments behind them.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

ARGUMENTS = ("arguments", "parameters")
NAMED_CALL = re.compile(r"([\w.-]{1,128})\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?\s*(?=\{)")
LONGEST_HEAD = 256  # characters before a named call's arguments


class Delta(NamedTuple):
    """What a piece of text adds to an answer."""

    kind: Literal["content", "reasoning", "call", "arguments"]
    """Text for the reader; reasoning; a call of a function, whose name is known now; more of the call's arguments."""

    text: str
    """The text, the function's name, or a part of the arguments as JSON."""

    call: int = 0
    """Which call of the answer, from 0 on."""

    call_id: str = ""
    """The call's id."""


@dataclass(frozen=True)
class Form:
    """How a family of models writes tool calls."""

    name: str
    opening: str
    """What stands before calls."""
    closing: str
    """What stands after each call; empty where nothing does."""
    between: str
    """Characters between calls that mean nothing."""
    bare: bool = False
    """Whether an answer that begins with an object is a call without its opening."""
    named: bool = False
    """Whether a call may be a name with its arguments behind it."""
    listed: bool = False
    """Whether calls stand in a JSON list."""
    arguments: str = "arguments"
    """The key of a call's arguments."""
    id_length: int = 24
    """Letters and digits of a call's id; Mistral's templates refuse all but 9."""

    @property
    def before_calls(self) -> str:
        """What stands before the first call, where nothing else does."""
        return "" if self.bare else self.opening + ("\n" if self.closing else "")

    @property
    def marks(self) -> frozenset[str]:
        """What may be a special token of the model, which has no text of its own."""
        return frozenset({self.opening, self.closing, *(("[ARGS]", "[CALL_ID]") if self.named else ())} - {""})


FORMS = {
    form.name: form
    for form in (
        Form("hermes", "<tool_call>", "</tool_call>", " \n\r\t"),
        Form("llama3", "<|python_tag|>", "", " \n\r\t;", bare=True, arguments="parameters"),
        Form("mistral", "[TOOL_CALLS]", "", " \n\r\t[],", named=True, listed=True, id_length=9),
    )
}


def form_of(template: str) -> Form | None:
    """Returns the form of tool calls that a chat template shows to its model; None where it shows none of ours."""
    for name, sign in (("hermes", "<tool_call>"), ("mistral", "[TOOL_CALLS]"), ("llama3", "python_tag")):
        if sign in template:
            return FORMS[name]
    return FORMS["llama3"] if "tools" in template and '"parameters"' in template else None


class CallParser:
    """Parts an answer into text and tool calls as it grows.

    Args:
        form: how the model writes calls.
        names: the functions that may be called; a call of another one stays text.
        begun: what of the answer stands in the prompt already.
    """

    def __init__(self, form: Form, names: Collection[str], begun: str = "") -> None:
        self._form, self._names = form, names
        self.marks = form.marks
        self._read = self._read_text
        self._text = ""  # not understood yet
        self._raw = ""  # of the call that is being read, should it turn out to be text
        self._begun = False
        self._object = _Object(names)
        self.calls = 0
        self.push(begun)

    def push(self, text: str) -> list[Delta]:
        """Adds text; returns what is certain now."""
        self._text += text
        found: list[Delta] = []
        while (step := self._read()) is not None:
            found += step
        return found

    def finish(self) -> list[Delta]:
        """Returns what was held back, at the end of the text."""
        rest = self._raw + self._text if not self._object.announced else ""
        self._text = self._raw = ""
        return [Delta("content", rest)] if rest.strip() else []

    def _read_text(self) -> list[Delta] | None:
        if self._form.bare and not self._begun:
            begin = self._text.lstrip()
            if not begin:
                return None
            if begin.startswith("{"):
                self._begun, self._text, self._read = True, begin, self._read_call
                return []
        at = self._text.find(self._form.opening)
        if at >= 0:
            before, self._text = self._text[:at], self._text[at + len(self._form.opening) :]
            self._raw, self._read = self._form.opening, self._read_call
            return self._content(before)
        held = start_of(self._form.opening, self._text)
        before, self._text = self._text[: len(self._text) - held], self._text[len(self._text) - held :]
        return self._content(before) or None

    def _content(self, text: str) -> list[Delta]:
        """Text outside of calls; what is only space between and after calls is dropped."""
        self._begun = self._begun or bool(text.strip())
        return [Delta("content", text)] if text and not (self.calls and not text.strip()) else []

    def _read_call(self) -> list[Delta] | None:
        """Reads on where a call may begin, or the calls may end."""
        opening = self._form.opening
        while self._text and self._text[0] in self._form.between and not self._text.startswith(opening):
            if opening.startswith(self._text):
                return None
            self._raw, self._text = self._raw + self._text[0], self._text[1:]
        if not self._text:
            return None
        if self._text.startswith("{"):
            self._object, self._read = _Object(self._names), self._read_object
            return []
        if self._form.closing and self._form.closing.startswith(self._text[: len(self._form.closing)]):
            if len(self._text) < len(self._form.closing):
                return None
            self._text, self._raw = self._text[len(self._form.closing) :], ""
            self._read = self._read_text
            return []
        if self._text.startswith(opening):
            self._raw, self._text = self._raw + opening, self._text[len(opening) :]
            return []
        if opening.startswith(self._text):
            return None
        if self._form.named:
            return self._read_name()
        return self._give_up()

    def _read_name(self) -> list[Delta] | None:
        head = NAMED_CALL.match(self._text)
        if head is None:
            waits = len(self._text) < LONGEST_HEAD and re.match(r"[\w.-]", self._text) and "{" not in self._text
            return None if waits else self._give_up()
        if head[1] not in self._names:
            return self._give_up()
        self._raw, self._text = self._raw + head[0], self._text[head.end() :]
        self._object, self._read = _Object(self._names, name=head[1]), self._read_object
        return []

    def _read_object(self) -> list[Delta] | None:
        if not self._text:
            return None
        taken, parts = self._object.push(self._text)
        self._raw, self._text = self._raw + self._text[:taken], self._text[taken:]
        found = [self._delta(part) for part in parts]
        if self._object.ended:
            if self._object.announced:
                self.calls += 1
                self._raw, self._read = "", self._read_call
            else:
                found += self._give_up()
        return found or (None if not self._text else [])

    def _delta(self, part: tuple[str, str]) -> Delta:
        kind, text = part
        if kind == "call":
            return Delta("call", text, self.calls, _call_id(self._form.id_length))
        return Delta("arguments", text, self.calls)

    def _give_up(self) -> list[Delta]:
        """Takes what looked like a call as text."""
        raw, self._raw, self._read = self._raw, "", self._read_text
        self._begun, self._object = True, _Object(self._names)
        return self._content(raw)


class _Object:
    """Reads one JSON object that stands for a call, character by character.

    As soon as the function's name is known, its arguments are handed on as they come. `announced` tells whether the
    name was handed on, `ended` whether the object is complete. With a `name` the object is the arguments themselves.
    """

    def __init__(self, names: Collection[str], name: str = "") -> None:
        self._names, self._name, self._is_arguments = names, name, bool(name)
        self._raw = ""
        self._depth = 0
        self._in_string = self._escaped = self._after_colon = False
        self._string = self._key = ""
        self._begin: int | None = None  # of the arguments in the text so far
        self._end: int | None = None
        self._sent = 0
        self.announced = self.ended = False

    def push(self, text: str) -> tuple[int, list[tuple[str, str]]]:
        """Adds text; returns how many characters belong to the object, and what is certain now."""
        taken = 0
        for letter in text:
            self._raw += letter
            taken += 1
            self._step(letter)
            if self.ended:
                break
        return taken, list(self._certain())

    def _step(self, letter: str) -> None:
        if self._in_string:
            self._step_in_string(letter)
            return
        if self._depth == 1 and self._after_colon and self._key in ARGUMENTS and not letter.isspace():
            self._begin = self._begin if self._begin is not None else len(self._raw) - 1
        if letter == '"':
            self._in_string, self._string = True, ""
        elif letter in "{[":
            self._depth += 1
            if self._depth == 1 and self._is_arguments:
                self._begin = len(self._raw) - 1
        elif letter in "}]":
            self._depth -= 1
            if self._depth == 0:
                self.ended = True
                self._close(len(self._raw) - (not self._is_arguments))
        elif self._depth == 1 and letter == ":":
            self._after_colon, self._key = True, self._string
        elif self._depth == 1 and letter == ",":
            self._close(len(self._raw) - 1)
            self._after_colon, self._key = False, ""

    def _step_in_string(self, letter: str) -> None:
        if self._escaped:
            self._escaped = False
        elif letter == "\\":
            self._escaped = True
        elif letter == '"':
            self._in_string = False
            if self._depth == 1 and self._after_colon and self._key == "name" and not self._is_arguments:
                self._name = self._string
            return
        self._string += letter

    def _close(self, end: int) -> None:
        if self._begin is not None and self._end is None:
            self._end = end

    def _certain(self) -> Iterator[tuple[str, str]]:
        if self._name not in self._names:
            return
        if self.ended:
            yield from self._complete()
        elif self._begin is not None and self._raw[self._begin] == "{":
            yield from self._announce()
            yield from self._send(
                self._raw[self._begin : self._end].rstrip() if self._end else self._raw[self._begin :]
            )

    def _complete(self) -> Iterator[tuple[str, str]]:
        """What remains to be said at the object's end."""
        arguments = self._arguments()
        if arguments is None and not self.announced:
            return
        yield from self._announce()
        if arguments is not None:
            yield from self._send(arguments)

    def _arguments(self) -> str | None:
        """The arguments as JSON; None where the object can't be read."""
        try:
            whole: Any = json.loads(self._raw)
        except ValueError:
            return None if self._begin is None else self._raw[self._begin : self._end].rstrip()
        if self._begin is None:
            return "{}"
        written = self._raw[self._begin : self._end].rstrip()
        value = whole if self._is_arguments else whole[self._key_of_arguments(whole)]
        return value if isinstance(value, str) else "{}" if value is None else written

    @staticmethod
    def _key_of_arguments(whole: dict[str, Any]) -> str:
        return next(key for key in ARGUMENTS if key in whole)

    def _announce(self) -> Iterator[tuple[str, str]]:
        if not self.announced:
            self.announced = True
            yield "call", self._name

    def _send(self, arguments: str) -> Iterator[tuple[str, str]]:
        if len(arguments) > self._sent:
            more, self._sent = arguments[self._sent :], len(arguments)
            yield "arguments", more


def start_of(mark: str, text: str) -> int:
    """Returns the length of the longest end of a text that a mark starts with, short of the whole mark."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


def _call_id(length: int) -> str:
    letters = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))
    return letters if length == 9 else f"call_{letters}"
