"""The objects of `/v1/responses`: text and function calls; the server stores none of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from outlay.engine.session import TextChunk
from outlay.serve import objects
from outlay.serve.answers import Answer, AnswerReader
from outlay.serve.asked import Asked
from outlay.serve.fields import Fields, ResponseRequest
from outlay.serve.tools import Delta
from outlay.serve.writer import Event, Spent, Writer

Item = dict[str, Any]


class ResponseWriter(Writer):
    """Writes responses. The text's parts are items: reasoning, a message, function calls."""

    def __init__(self, asked: Asked, request: ResponseRequest) -> None:
        told = request.stream_options is not None and request.stream_options.include_outlay
        super().__init__(asked, frozenset({"outlay"} if told else ()))
        self._request, self._created = request, time.time()
        self._id, self._sequence = objects.new_id("resp"), 0
        self._items: list[Item] = []
        self._open: Item | None = None
        self._logprobs: list[dict[str, Any]] = []

    def whole(self, answers: Sequence[Answer], readers: Sequence[AnswerReader]) -> dict[str, Any]:
        answer, reader = answers[0], readers[0]
        logprobs = objects.chat_logprobs(self.tokenizer, answer.logprobs or ())
        if reader.reasoning:
            list(self._write(Delta("reasoning", reader.reasoning)))
        if reader.content or not reader.calls:
            list(self._write(Delta("content", reader.content), logprobs))
        for place, call in enumerate(reader.calls):
            list(self._write(Delta("call", call.name, place, call.id)))
            list(self._write(Delta("arguments", call.arguments, place)))
        list(self._close_item(_status(answer)))
        return self._response(answer)

    def begin(self) -> Iterator[Event]:
        yield self._event("response.created", response=self._response())
        yield self._event("response.in_progress", response=self._response())

    def add(self, index: int, chunk: TextChunk, deltas: Sequence[Delta], spent: Spent) -> Iterator[Event]:
        logprobs = objects.chat_logprobs(self.tokenizer, chunk.logprobs)
        told = self.told_of(chunk, spent)
        for place, delta in enumerate(deltas):
            for event in self._write(delta, logprobs if place == 0 else []):
                yield Event(event.data | ({"outlay": told} if told else {}), event.name)

    def end(self, index: int, answer: Answer, reader: AnswerReader, rest: Sequence[Delta]) -> Iterator[Event]:
        for delta in rest:
            yield from self._write(delta)
        if not self._items and self._open is None:
            yield from self._write(Delta("content", ""))
        yield from self._close_item(_status(answer))

    def close(self, answers: Sequence[Answer], readers: Sequence[AnswerReader]) -> Iterator[Event]:
        yield self._event(f"response.{_status(answers[0])}", response=self._response(answers[0]))

    def fail(self, error: dict[str, Any]) -> Iterator[Event]:
        failed = {"code": error["error"]["code"] or "server_error", "message": error["error"]["message"]}
        yield self._event("response.failed", response=self._response() | {"status": "failed", "error": failed})

    def _write(self, delta: Delta, logprobs: Sequence[dict[str, Any]] = ()) -> Iterator[Event]:
        """Adds to the item that is open, or opens the next one."""
        kind = {"content": "message", "reasoning": "reasoning"}.get(delta.kind, "function_call")
        if self._open is None or self._open["type"] != kind or delta.kind == "call":
            yield from self._close_item("completed")
            yield from self._open_item(kind, delta)
        assert self._open is not None
        place = {"item_id": self._open["id"], "output_index": len(self._items)}
        if delta.kind == "content":
            self._open["content"][0]["text"] += delta.text
            self._logprobs += logprobs
            yield self._event(
                "response.output_text.delta", **place, content_index=0, delta=delta.text, logprobs=list(logprobs)
            )
        elif delta.kind == "reasoning":
            self._open["content"][0]["text"] += delta.text
            yield self._event("response.reasoning_text.delta", **place, content_index=0, delta=delta.text)
        elif delta.kind == "arguments":
            self._open["arguments"] += delta.text
            yield self._event("response.function_call_arguments.delta", **place, delta=delta.text)

    def _open_item(self, kind: str, delta: Delta) -> Iterator[Event]:
        if kind == "function_call":
            self._open = {
                "id": objects.new_id("fc"), "type": kind, "status": "in_progress", "call_id": delta.call_id,
                "name": delta.text, "arguments": "",
            }  # fmt: skip
        elif kind == "reasoning":
            content: list[Item] = [{"type": "reasoning_text", "text": ""}]
            self._open = {"id": objects.new_id("rs"), "type": kind, "summary": [], "content": content}
        else:
            content = [{"type": "output_text", "text": "", "annotations": [], "logprobs": self._logprobs}]
            self._open = {
                "id": objects.new_id("msg"), "type": kind, "status": "in_progress", "role": "assistant",
                "content": content,
            }  # fmt: skip
        index = len(self._items)
        shown = {**self._open, **({"content": []} if kind != "function_call" else {})}
        yield self._event("response.output_item.added", output_index=index, item=shown)
        if kind == "message":
            part: Item = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            place = {"item_id": self._open["id"], "output_index": index, "content_index": 0}
            yield self._event("response.content_part.added", **place, part=part)

    def _close_item(self, status: str) -> Iterator[Event]:
        item, self._open = self._open, None
        if item is None:
            return
        place = {"item_id": item["id"], "output_index": len(self._items)}
        if item["type"] == "message":
            part = item["content"][0]
            yield self._event(
                "response.output_text.done", **place, content_index=0, text=part["text"], logprobs=self._logprobs
            )
            yield self._event("response.content_part.done", **place, content_index=0, part=dict(part))
        elif item["type"] == "reasoning":
            yield self._event("response.reasoning_text.done", **place, content_index=0, text=item["content"][0]["text"])
        else:
            yield self._event(
                "response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"]
            )
        if "status" in item:
            item["status"] = status
        self._items.append(item)
        yield self._event("response.output_item.done", output_index=place["output_index"], item=item)

    def _event(self, kind: str, **data: Any) -> Event:
        self._sequence += 1
        return Event({"type": kind, "sequence_number": self._sequence - 1, **data}, kind)

    def _response(self, answer: Answer | None = None) -> dict[str, Any]:
        request = self._request
        status = "in_progress" if answer is None else _status(answer)
        head = objects.head(self.asked, self._id, "response")
        return {
            "id": head["id"],
            "object": "response",
            "created_at": int(self._created),
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": head["model"],
            "output": list(self._items),
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "system_fingerprint": head["system_fingerprint"],
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": _said(request.text and request.text.format) or {"type": "text"}},
            "tool_choice": _said(request.tool_choice) or "auto",
            "tools": [tool.model_dump() for tool in request.tools or ()],
            "top_logprobs": request.top_logprobs,
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": None if answer is None else _usage(answer),
            "user": request.user,
            **({} if answer is None else {"outlay": objects.spending(self.asked, [answer])}),
        }


def _said(field: Any) -> Any:
    """Returns a field of a request as the request has it."""
    return field.model_dump(by_alias=True, exclude_none=True) if isinstance(field, Fields) else field


def _status(answer: Answer) -> str:
    return "completed" if objects.finish_reason(answer) == "stop" else "incomplete"


def _usage(answer: Answer) -> dict[str, Any]:
    counts = objects.usage([answer], 1)
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": answer.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": counts["total_tokens"],
    }
