"""Text that knows, for each of its characters, whether a message wrote it or the chat template.

A template cuts, joins and rewrites what it is given. `Content` keeps its marks through all of that, so that a control
token that a user spells out can be told from the template's own. What a function makes of content by other ways, such
as JSON, is content as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

MESSAGE, TEMPLATE = b"\1", b"\0"  # the mark of a character


class Content(str):
    """A string with a mark for each character: `MESSAGE` where a message wrote it, `TEMPLATE` where the template did.

    All characters of a `Content` are the message's if no marks are given.
    """

    marks: bytes

    def __new__(cls, text: object = "", marks: bytes | None = None) -> Content:
        self = super().__new__(cls, text)
        self.marks = MESSAGE * len(self) if marks is None else marks
        return self

    def __str__(self) -> str:
        return self  # where `str` would return a plain copy

    def __add__(self, other: Any) -> Content:
        return join("", (self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> Content:
        return join("", (other, self)) if isinstance(other, str) else NotImplemented

    def __getitem__(self, key: SupportsIndex | slice) -> Content:
        index = key if isinstance(key, slice) else slice(key.__index__(), key.__index__() + 1 or None)
        return Content(super().__getitem__(key), self.marks[index])

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __mul__(self, times: SupportsIndex) -> Content:
        return Content(super().__mul__(times), self.marks * times.__index__())

    def __rmod__(self, other: str) -> Content:
        return Content(str.__mod__(other, self))

    __rmul__ = __mul__

    def lstrip(self, chars: str | None = None) -> Content:
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None) -> Content:
        return self[: len(super().rstrip(chars))]

    def strip(self, chars: str | None = None) -> Content:
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> Content:
        return self[len(self) - len(super().removeprefix(prefix)) :]

    def removesuffix(self, suffix: str, /) -> Content:
        return self[: len(super().removesuffix(suffix))]

    def join(self, parts: Iterable[str], /) -> str:
        return join(self, parts)

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        return replace(self, old, new, count)

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(super().rsplit(sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = self._located(super().splitlines(True), "")
        return lines if keepends else [line[: len("".join(str.splitlines(line)))] for line in lines]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._located(super().partition(sep), "")
        return before, found, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._located(super().rpartition(sep), "")
        return before, found, after

    def _located(self, pieces: Iterable[str], sep: str | None) -> list[str]:
        """Returns pieces of this text, in order, with their marks; `sep` lies between two, None is any whitespace."""
        located: list[str] = []
        at = 0
        for piece in pieces:
            if sep is None:
                at = self.find(piece, at)
            located.append(self[at : at + len(piece)])
            at += len(piece) + len(sep or "")
        return located


def _of_same_length(name: str) -> Any:
    """Returns a method of `str` that mostly changes a character for another; where it doesn't, all is content."""
    plain = getattr(str, name)

    def method(self: Content) -> Content:
        text = plain(self)
        return Content(text, self.marks if len(text) == len(self) else None)

    return method


def _as_a_whole(name: str) -> Any:
    """Returns a method of `str` whose result is content as a whole."""
    plain = getattr(str, name)

    def method(self: Content, *args: Any, **options: Any) -> Content:
        return Content(plain(self, *args, **options))

    return method


for _name in ("lower", "upper", "capitalize", "title", "swapcase", "casefold"):
    setattr(Content, _name, _of_same_length(_name))
for _name in ("center", "ljust", "rjust", "zfill", "expandtabs", "translate", "format", "format_map", "__mod__"):
    setattr(Content, _name, _as_a_whole(_name))


def marks_of(text: str) -> bytes:
    """Returns the mark of each character; a plain string is the template's."""
    return text.marks if isinstance(text, Content) else TEMPLATE * len(text)


def content_of(text: str) -> str:
    """Returns the characters that messages wrote."""
    return "".join([letter for letter, mark in zip(str.__str__(text), marks_of(text), strict=True) if mark])


def join(separator: str, parts: Iterable[str]) -> Any:
    """Returns what `separator.join(parts)` returns, with marks if any of it has some."""
    parts = list(parts)
    text = str.join(separator, parts)
    if not isinstance(separator, Content) and not any(isinstance(part, Content) for part in parts):
        return text
    return Content(text, marks_of(separator).join(map(marks_of, parts)))


def replace(text: str, old: str, new: str, count: SupportsIndex = -1) -> str:
    """Returns what `text.replace(old, new, count)` returns, with marks if any of it has some."""
    if not old:
        plain = str.replace(text, old, new, count)
        return Content(plain) if holds_content((text, new)) else plain
    pieces = text.split(old, count)
    return str(join(new, pieces))


def marked(value: Any) -> Any:
    """Returns data with all of its strings as content."""
    if isinstance(value, str):
        return Content(value)
    if isinstance(value, Mapping):
        return {marked(key): marked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [marked(item) for item in value]
    return value


def holds_content(value: Any) -> bool:
    """Tells whether data has content anywhere in it."""
    if isinstance(value, Mapping):
        return any(holds_content(item) for pair in value.items() for item in pair)
    return isinstance(value, Content) or (isinstance(value, list | tuple) and any(map(holds_content, value)))
