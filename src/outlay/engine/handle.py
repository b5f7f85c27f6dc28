"""The caller's end of a run: pieces of text as they come, the result, and cancellation, from any thread or event
loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from outlay.budget import Ledger
from outlay.engine.run import Alternative, TokenLogprob


@dataclass(frozen=True)
class Result:
    """What a run gave. `finish_reason` is "stop" (an end token, a stop string, or the method's own end), "length"
    (`max_tokens` or the context), "budget" or "cancelled". `tokens` includes the end token, `text` does not show it.
    `origins` names, for each token, what proposed it: empty for the model's own choice. `alternatives` are texts to
    choose from, the best first, of methods that propose several."""

    text: str
    tokens: list[int]
    finish_reason: str
    ledger: Ledger
    method: str
    model: str
    origins: list[str]
    logprobs: list[TokenLogprob] | None = None
    alternatives: list[Alternative] = field(default_factory=list)


class TextChunk(NamedTuple):
    """A piece of text as it comes, and what proposed it: empty for the model's own choice."""

    text: str
    origin: str


class Handle:
    """A run that was submitted. Iterate over it for the pieces of its text; `result` waits for the end."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ended = threading.Event()  # of its own, so that who waits for the end is not woken at each piece
        self._chunks: list[TextChunk] = []
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._wakers: list[Callable[[], None]] = []
        self.cancelled = False

    def __iter__(self) -> Iterator[str]:
        """Yields pieces of text until the run ends. Raises the run's error, if it failed."""
        return (chunk.text for chunk in self.chunks())

    def chunks(self) -> Iterator[TextChunk]:
        """As iterating over the handle; each piece comes with what proposed it."""
        seen = 0
        while True:
            with self._changed:
                while len(self._chunks) == seen and not self.done:
                    self._changed.wait()
                fresh, ended = self._chunks[seen:], self.done
            yield from fresh
            seen += len(fresh)
            if ended:
                self.result()
                return

    async def __aiter__(self) -> AsyncIterator[str]:
        """As `__iter__`, without blocking the event loop. Leaving the loop early does not cancel the run."""
        loop, awake, seen = asyncio.get_running_loop(), asyncio.Event(), 0

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(awake.set)

        with self._changed:
            self._wakers.append(wake)
        try:
            while True:
                awake.clear()
                with self._changed:
                    fresh, ended = self._chunks[seen:], self.done
                for chunk in fresh:
                    yield chunk.text
                seen += len(fresh)
                if ended:
                    self.result()
                    return
                await awake.wait()
        finally:
            with self._changed:
                self._wakers.remove(wake)

    @property
    def done(self) -> bool:
        """Whether the run has ended, well or not."""
        return self._result is not None or self._error is not None

    def cancel(self) -> None:
        """Asks the run to end with `finish_reason="cancelled"` and the text so far. It does before its next pass."""
        self.cancelled = True

    def result(self, timeout: float | None = None) -> Result:
        """Waits for the end and returns the result. Raises the run's error, or `TimeoutError` after `timeout`
        seconds.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the run did not end within {timeout} s")
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    async def wait(self) -> Result:
        """As `result`, without blocking the event loop."""
        async for _ in self:
            pass
        return self.result()

    def add(self, text: str, origin: str) -> None:
        """Called by the engine with a piece of text."""
        self._change(lambda: self._chunks.append(TextChunk(text, origin)))

    def end(self, result: Result | None, error: BaseException | None = None) -> None:
        """Called by the engine, once, at the end."""
        self._result, self._error = result, error
        self._ended.set()
        self._change(lambda: None)

    def _change(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()
            wakers = list(self._wakers)
        for wake in wakers:
            wake()
