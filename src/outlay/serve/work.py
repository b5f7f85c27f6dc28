"""A request at work: it waits for its turn, runs, and sends its answer; all of it ends when the client leaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from outlay.budget import Ledger
from outlay.serve.answers import Answer, AnswerReader
from outlay.serve.asked import Asked
from outlay.serve.errors import UNTOLD, ApiError, as_api_error
from outlay.serve.gate import send_error, send_json
from outlay.serve.generation import Generation, Told
from outlay.serve.log import Log
from outlay.serve.metrics import Metrics
from outlay.serve.settings import Settings
from outlay.serve.turns import Turns
from outlay.serve.writer import Event, Writer

COMMENT = b": nothing is certain yet\n\n"


class Desk:
    """What all requests share: turns, threads, counters, and whether the server still takes work."""

    def __init__(self, settings: Settings, turns: Turns, pool: Executor, metrics: Metrics, log: Log) -> None:
        self.settings, self.turns, self.pool, self.metrics, self.log = settings, turns, pool, metrics, log
        self.ready = False
        self.draining = False

    def refuse_unready(self) -> None:
        """Raises `ApiError` before the server is ready and after it was told to end."""
        if self.draining:
            raise ApiError(503, "the server is stopping", code="stopping", retry_after=5.0)
        if not self.ready:
            raise ApiError(503, "the server is starting; /ready tells when it has", code="starting", retry_after=1.0)


class Work(Response):
    """The answer to a request that decodes. All is done while it is sent, in one scope that ends with the client.

    Args:
        desk: what all requests share.
        asked: what is asked for.
        writer: makes the answer's objects.
        stream: whether they are sent as events.
    """

    def __init__(self, desk: Desk, asked: Asked, writer: Writer, stream: bool) -> None:
        super().__init__()
        self._desk, self._asked, self._writer, self._stream = desk, asked, writer, stream
        self._began = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        facts = scope["outlay"]
        facts |= {"model": self._asked.hosted.name, "method": self._asked.method.label, "stream": self._stream}
        work = asyncio.create_task(self._work(facts, send))
        await ended_or_left(work, receive, facts, self._desk.metrics)
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error

    async def _work(self, facts: dict[str, Any], send: Send) -> None:
        desk, asked = self._desk, self._asked
        seconds = min(desk.settings.limits.seconds, asked.budget.caps.get("seconds", float("inf")))
        try:
            left = seconds - (time.monotonic() - facts["arrived"])
            async with desk.turns.turn(facts["key"], asked.copies * asked.prompts, max(left, 0.0)):
                generation = Generation(
                    asked, desk.settings.limits, desk.pool, facts["arrived"] + seconds,
                    rounds=self._stream and "outlay" in self._writer.told,
                )  # fmt: skip
                try:
                    await generation.start()
                    await self._answer(generation, facts, send)
                finally:
                    await generation.close()
        except Exception as error:
            await self._fail(error, facts, send)

    async def _answer(self, generation: Generation, facts: dict[str, Any], send: Send) -> None:
        """Follows the runs to their end, and sends the answer whole or as a stream."""
        texts = self._asked.texts * self._asked.prompts
        readers = [generation.reader(index) for index in range(texts)]
        answers: list[Answer | None] = [None] * texts
        clock = _Clock(self._desk.metrics, self._asked.hosted.name, facts)
        if self._stream:
            await self._begin_stream(send)
            await _send_events(self._writer.begin(), send)
        async with aclosing(generation.events(self._desk.settings.keep_alive)) as happening:
            async for told in happening:
                if told is None:
                    if self._stream:
                        await _send_body(COMMENT, send)
                    continue
                if told.chunk is not None:
                    clock.tick(told.place)
                events = self._take(told, readers, answers, generation)
                if self._stream:
                    await _send_events(events, send)
                else:
                    list(events)
        ended = [answer for answer in answers if answer is not None]
        self._note(ended, readers, facts)
        if self._stream:
            await _send_events(self._writer.close(ended, readers), send)
            await _send_body(f"data: {self._writer.done}\n\n".encode() if self._writer.done else b"", send)
            await _send_body(b"", send, more=False)
        else:
            await send_json(self._writer.whole(ended, readers), send)

    def _take(
        self, told: Told, readers: list[AnswerReader], answers: list[Answer | None], generation: Generation
    ) -> Iterator[Event]:
        reader = readers[told.place]
        if told.chunk is not None:
            deltas = reader.push(told.chunk)
            if reader.complete:
                generation.enough(told.place)
            if self._stream:
                yield from self._writer.add(told.place, told.chunk, deltas, generation.ledger)
        if told.filled is not None:
            yield from self._writer.fill(told.place, told.filled)
        if told.answer is not None:
            if told.answer.finish_reason == "cancelled":
                raise ApiError(
                    503, "the server stopped before the answer was complete", code="stopping", retry_after=5.0
                )
            answers[told.place] = told.answer
            rest = reader.finish()
            if self._stream:
                yield from self._writer.end(told.place, told.answer, reader, rest)

    def _note(self, answers: list[Answer], readers: list[AnswerReader], facts: dict[str, Any]) -> None:
        """Counts the answers, and tells the log of them."""
        for answer in answers:
            self._desk.metrics.answer(self._asked.hosted.name, answer)
        total = sum((answer.ledger for answer in answers), Ledger())
        facts |= {
            "finish_reason": answers[0].finish_reason,
            "prompt_tokens": answers[0].prompt_tokens,
            "cached_tokens": answers[0].cached_tokens,
            "tokens_out": total.tokens_out,
            "target_passes": total.target_passes,
            "drafted": total.drafted,
            "accepted": total.accepted,
        }
        if self._desk.settings.log_prompts:
            facts |= {"prompt": self._asked.shown(), "texts": [reader.content for reader in readers]}

    async def _begin_stream(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._began = True

    async def _fail(self, error: Exception, facts: dict[str, Any], send: Send) -> None:
        """Tells the client of an error, in an event where the stream began."""
        told = as_api_error(error)
        facts["error"] = told.message
        if told.code in UNTOLD:
            self._desk.log("error", id=facts["id"], error=f"{type(error).__name__}: {error}")
        if not self._began:
            await send_error(told, send)
            return
        await _send_events(self._writer.fail(told.body), send)
        await _send_body(b"", send, more=False)


class _Clock:
    """Notes when a request's texts move on."""

    def __init__(self, metrics: Metrics, model: str, facts: dict[str, Any]) -> None:
        self._first_tokens, self._gaps, self._facts = metrics.first_tokens(model), metrics.gaps(model), facts
        self._last: dict[int, float] = {}

    def tick(self, index: int) -> None:
        """A piece of the text with this index has come."""
        now = time.monotonic()
        if not self._last:
            self._facts["first_token"] = round(now - self._facts["arrived"], 4)
            self._first_tokens.observe(now - self._facts["arrived"])
        elif index in self._last:
            self._gaps.observe(now - self._last[index])
        self._last[index] = now


async def ended_or_left(work: asyncio.Task[Any], receive: Receive, facts: dict[str, Any], metrics: Metrics) -> None:
    """Waits until a request's work has ended, or cancels it when the client leaves first."""
    left = asyncio.create_task(_client_left(receive))
    try:
        await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            facts["left"] = True
            metrics.client_left()
    finally:
        for task in (work, left):
            task.cancel()
        await asyncio.gather(work, left, return_exceptions=True)


async def _client_left(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_events(events: Iterator[Event], send: Send) -> None:
    """Sends events, those of one moment in one piece."""
    data = b"".join(map(_encoded, events))
    if data:
        await _send_body(data, send)


def _encoded(event: Event) -> bytes:
    name = f"event: {event.name}\n" if event.name else ""
    return f"{name}data: {json.dumps(event.data)}\n\n".encode()


async def _send_body(data: bytes, send: Send, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})
