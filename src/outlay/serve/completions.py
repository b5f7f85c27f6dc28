"""The objects of `/v1/completions`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from outlay.engine.session import TextChunk
from outlay.serve import objects
from outlay.serve.answers import Answer, AnswerReader
from outlay.serve.asked import Asked
from outlay.serve.generation import Filled
from outlay.serve.tools import Delta
from outlay.serve.writer import Event, Spent, Writer


class CompletionWriter(Writer):
    """Writes completions.

    Args:
        asked: what was asked for.
        told: what was asked to be told with a stream.
        echo: the prompts, each as text, where answers begin with them.
    """

    done = "[DONE]"

    def __init__(self, asked: Asked, told: frozenset[str] = frozenset(), echo: Sequence[str] = ()) -> None:
        super().__init__(asked, told)
        self._echo = echo
        self._head = objects.head(asked, objects.new_id("cmpl"), "text_completion")
        self._open = asked.texts * asked.prompts
        self._last: Event | None = None  # what the stream closes with
        self._written = [0] * (asked.texts * asked.prompts)  # characters of each text so far

    def whole(self, answers: Sequence[Answer], readers: Sequence[AnswerReader]) -> dict[str, Any]:
        choices = []
        for index, (answer, reader) in enumerate(zip(answers, readers, strict=True)):
            logprobs = answer.logprobs
            choices.append(
                {
                    "index": index,
                    "text": self._prompt(index) + reader.content,
                    "logprobs": None if logprobs is None else objects.completion_logprobs(self.tokenizer, logprobs, 0),
                    "finish_reason": objects.finish_reason(answer),
                }
            )
        return {
            **self._head,
            "choices": choices,
            "usage": objects.usage(answers, self.asked.texts),
            "outlay": objects.spending(self.asked, answers),
        }

    def begin(self) -> Iterator[Event]:
        for index in range(len(self._written) if self._echo else 0):
            yield self._chunk(index, self._prompt(index))

    def add(self, index: int, chunk: TextChunk, deltas: Sequence[Delta], spent: Spent) -> Iterator[Event]:
        text = "".join(delta.text for delta in deltas)
        told = self.told_of(chunk, spent)
        logprobs = None
        if chunk.logprobs:
            logprobs = objects.completion_logprobs(self.tokenizer, chunk.logprobs, self._written[index])
        self._written[index] += len(text)
        if text or logprobs or told:
            yield self._chunk(index, text, logprobs=logprobs, told=told)

    def fill(self, index: int, filled: Filled) -> Iterator[Event]:
        yield self._chunk(index, "", told={"round": filled.number, "filled": filled.texts})

    def end(self, index: int, answer: Answer, reader: AnswerReader, rest: Sequence[Delta]) -> Iterator[Event]:
        last = self._chunk(index, "".join(delta.text for delta in rest), reason=objects.finish_reason(answer))
        yield from self._all_but_last(last)

    def close(self, answers: Sequence[Answer], readers: Sequence[AnswerReader]) -> Iterator[Event]:
        assert self._last is not None, "the stream closes after its last text"
        yield Event(self._last.data | {"outlay": objects.spending(self.asked, answers)})
        if "usage" in self.told:
            yield Event({**self._head, "choices": [], "usage": objects.usage(answers, self.asked.texts)})

    def fail(self, error: dict[str, Any]) -> Iterator[Event]:
        yield Event(error)

    def _prompt(self, index: int) -> str:
        return self._echo[index // self.asked.texts] if self._echo else ""

    def _all_but_last(self, event: Event) -> Iterator[Event]:
        """Yields the end of a text; the last one is kept, to tell what all of them cost."""
        self._open -= 1
        if self._open:
            yield event
        else:
            self._last = event

    def _chunk(
        self,
        index: int,
        text: str,
        *,
        reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
        told: dict[str, Any] | None = None,
    ) -> Event:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        data = {**self._head, "choices": [choice]}
        return Event(data | ({"outlay": told} if told is not None else {}))
