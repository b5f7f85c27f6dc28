"""What turns the texts of a request into the objects of one endpoint, whole or as a stream of events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from outlay.budget import Ledger
from outlay.engine.session import TextChunk
from outlay.serve.answers import Answer, AnswerReader
from outlay.serve.asked import Asked
from outlay.serve.generation import Filled
from outlay.serve.tools import Delta

Spent = Callable[[], Ledger]


class Event(NamedTuple):
    """An event of a stream."""

    data: dict[str, Any]
    name: str = ""
    """What the event is called, for endpoints that name them."""


class Writer(ABC):
    """Writes the answer to one request.

    Args:
        asked: what was asked for.
        told: what was asked to be told with a stream: "usage", "outlay".
    """

    done = ""
    """What ends the stream besides its last event."""

    def __init__(self, asked: Asked, told: frozenset[str] = frozenset()) -> None:
        self.asked, self.told = asked, told
        self.tokenizer = asked.hosted.lm.model.tokenizer

    def told_of(self, chunk: TextChunk, spent: Spent) -> dict[str, Any] | None:
        """Returns what the stream tells of a chunk besides its text, if that was asked for."""
        if "outlay" not in self.told:
            return None
        return {"origin": chunk.origin, "tokens": len(chunk.tokens), "ledger": spent().as_dict()}

    @abstractmethod
    def whole(self, answers: Sequence[Answer], readers: Sequence[AnswerReader]) -> dict[str, Any]:
        """Returns the answer as one object."""

    def begin(self) -> Iterator[Event]:
        """Yields what a stream begins with."""
        return iter(())

    @abstractmethod
    def add(self, index: int, chunk: TextChunk, deltas: Sequence[Delta], spent: Spent) -> Iterator[Event]:
        """Yields what a chunk of text adds; `spent` tells what has been spent so far."""

    def fill(self, index: int, filled: Filled) -> Iterator[Event]:
        """Yields what tells of a round of a canvas: its number, and the text of each position that it filled."""
        return iter(())

    @abstractmethod
    def end(self, index: int, answer: Answer, reader: AnswerReader, rest: Sequence[Delta]) -> Iterator[Event]:
        """Yields the end of one text, after the `rest` that was held back."""

    @abstractmethod
    def close(self, answers: Sequence[Answer], readers: Sequence[AnswerReader]) -> Iterator[Event]:
        """Yields the end of the stream."""

    @abstractmethod
    def fail(self, error: dict[str, Any]) -> Iterator[Event]:
        """Yields what tells of an error after the stream began."""
