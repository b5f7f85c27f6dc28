"""The caller's end of a run: its text as it comes, its result and cancellation, from any thread or event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from outlay.budget import Ledger
from outlay.engine.receipt import Receipt
from outlay.engine.session import Alternative, TextChunk, Timing, TokenLogprob


@dataclass(frozen=True)
class Result:
    """What a run wrote and spent."""

    text: str
    """The text, without the end token and the stop string."""
    tokens: list[int]
    """The tokens, the end token included."""
    finish_reason: str
    """Why it ended: "stop" (an end token, a stop string or the method's own end), "length" (`max_tokens` or the
    context), "budget" or "cancelled"."""
    ledger: Ledger
    """What the run spent."""
    method: str
    """The method's name with its options."""
    model: str
    """The model's name."""
    origins: list[str]
    """What proposed each token; empty for the model's own choice."""
    prompt_tokens: int
    """How many tokens the prompt has."""
    cached_tokens: int
    """How many of them were in the cache when the run began, and were not computed for it."""
    timing: Timing
    """When it was submitted, began and gave its first token."""
    cap: str = ""
    """The entry of the budget that ended it; empty where none did."""
    logprobs: list[TokenLogprob] | None = None
    """Log-probabilities of each token, if they were asked for."""
    alternatives: list[Alternative] = field(default_factory=list)
    """Texts to choose from, if there are several: what the method proposes, the best first, or the `n` samples."""
    receipt: Receipt | None = None
    """What makes the same logits again anywhere, if it was asked for."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the method found out, by name: weights, a verdict, whatever doesn't add up over runs as the ledger does."""


class Handle:
    """A run that was submitted. Iterate over it for its text as it grows; `result` waits for the end."""

    def __init__(self, cancelled: Callable[[], None] = lambda: None) -> None:
        """Makes the handle of a run. `cancelled` is called when it was cancelled, to wake an engine that sleeps."""
        self._tell = cancelled
        self._changed = threading.Condition()
        self._ended = threading.Event()  # of its own, so that waiting for the end does not wake up at each chunk
        self._chunks: list[TextChunk] = []
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._wakers: list[Callable[[], None]] = []
        self.cancelled = False
        self.ledger = Ledger()  # what has been spent so far; the engine's own while the run goes on

    def __iter__(self) -> Iterator[str]:
        """Yields text as it comes until the run ends. Raises the run's error, if it failed."""
        return (chunk.text for chunk in self.chunks() if chunk.text)

    def chunks(self) -> Iterator[TextChunk]:
        """Yields text as it comes, with its tokens and what proposed it. Raises the run's error, if it failed.

        The tokens of all chunks together are those of the result.
        """
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
        async with aclosing(self.achunks()) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    yield chunk.text

    async def achunks(self) -> AsyncGenerator[TextChunk]:
        """As `chunks`, without blocking the event loop. Leaving the loop early does not cancel the run."""
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
                    yield chunk
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
        self._tell()

    def result(self, timeout: float | None = None) -> Result:
        """Waits for the end and returns the result.

        Args:
            timeout: seconds to wait at most (None: any time).

        Raises:
            TimeoutError: if the run does not end in time.
            Exception: the run's error, if it failed.
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

    def add(self, chunk: TextChunk) -> None:
        """Adds a chunk of text. The engine calls this."""
        self._change(lambda: self._chunks.append(chunk))

    def end(self, result: Result | None, error: BaseException | None = None) -> None:
        """Ends the run with a result or an error. The engine calls this once."""
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
