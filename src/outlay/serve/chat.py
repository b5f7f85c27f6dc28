"""The objects of `/v1/chat/completions`."""

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


class ChatWriter(Writer):
    """Writes chat completions."""

    done = "[DONE]"

    def __init__(self, asked: Asked, told: frozenset[str] = frozenset()) -> None:
        super().__init__(asked, told)
        self._id = objects.new_id("chatcmpl")
        self._head = objects.head(asked, self._id, "chat.completion.chunk")
        self._open = asked.texts
        self._last: Event | None = None  # what the stream closes with

    def whole(self, answers: Sequence[Answer], readers: Sequence[AnswerReader]) -> dict[str, Any]:
        choices = []
        for index, (answer, reader) in enumerate(zip(answers, readers, strict=True)):
            choice: dict[str, Any] = {
                "index": index,
                "message": objects.message(reader),
                "logprobs": self._logprobs(answer.logprobs),
                "finish_reason": objects.finish_reason(answer, bool(reader.calls)),
            }
            choices.append(choice)
        return {
            **objects.head(self.asked, self._id, "chat.completion"),
            "choices": choices,
            "usage": objects.usage(answers, self.asked.texts),
            "outlay": objects.spending(self.asked, answers),
        }

    def begin(self) -> Iterator[Event]:
        for index in range(self.asked.texts):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def add(self, index: int, chunk: TextChunk, deltas: Sequence[Delta], spent: Spent) -> Iterator[Event]:
        logprobs = self._logprobs(chunk.logprobs) if chunk.logprobs else None
        told = self.told_of(chunk, spent)
        for place, delta in enumerate(deltas or ([Delta("content", "")] if logprobs or told else [])):
            first = place == 0
            yield self._chunk(index, _delta(delta), logprobs=logprobs if first else None, told=told if first else None)

    def fill(self, index: int, filled: Filled) -> Iterator[Event]:
        yield self._chunk(index, {}, told={"round": filled.number, "filled": filled.texts})

    def end(self, index: int, answer: Answer, reader: AnswerReader, rest: Sequence[Delta]) -> Iterator[Event]:
        for delta in rest:
            yield self._chunk(index, _delta(delta))
        last = self._chunk(index, {}, reason=objects.finish_reason(answer, bool(reader.calls)))
        yield from self._all_but_last(last)

    def close(self, answers: Sequence[Answer], readers: Sequence[AnswerReader]) -> Iterator[Event]:
        assert self._last is not None, "the stream closes after its last text"
        yield Event(self._last.data | {"outlay": objects.spending(self.asked, answers)})
        if "usage" in self.told:
            yield Event({**self._head, "choices": [], "usage": objects.usage(answers, self.asked.texts)})

    def fail(self, error: dict[str, Any]) -> Iterator[Event]:
        yield Event(error)

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
        delta: dict[str, Any],
        *,
        reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
        told: dict[str, Any] | None = None,
    ) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        data = {**self._head, "choices": [choice]}
        return Event(data | ({"outlay": told} if told is not None else {}))

    def _logprobs(self, logprobs: Any) -> dict[str, Any] | None:
        if logprobs is None:
            return None
        return {"content": objects.chat_logprobs(self.tokenizer, logprobs), "refusal": None}


def _delta(delta: Delta) -> dict[str, Any]:
    """Returns what a chunk's `delta` says."""
    if delta.kind == "content":
        return {"content": delta.text}
    if delta.kind == "reasoning":
        return {"reasoning_content": delta.text}
    call: dict[str, Any] = {"index": delta.call}
    if delta.kind == "call":
        call |= {"id": delta.call_id, "type": "function", "function": {"name": delta.text, "arguments": ""}}
    else:
        call["function"] = {"arguments": delta.text}
    return {"tool_calls": [call]}
