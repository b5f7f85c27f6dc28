"""Whose turn it is: requests wait in a line for each API key, and the lines take turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from outlay.serve.errors import ApiError
from outlay.serve.settings import Queue

RETRY_AFTER = 1.0  # seconds that a client is asked to wait before it tries again


@dataclass(eq=False)
class _Waiting:
    texts: int
    admitted: asyncio.Future[None]


class Turns:
    """Admits requests while fewer than `running` texts are at work, one of each API key after the other.

    A request that was cancelled while it waits leaves its line at once. Use it from one event loop.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue, self._free = queue, queue.running
        self._lines: dict[str, deque[_Waiting]] = {}  # the line whose turn it is comes first

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(map(len, self._lines.values()))

    @property
    def running(self) -> int:
        """How many texts are at work."""
        return self._queue.running - self._free

    @asynccontextmanager
    async def turn(self, key: str, texts: int, seconds: float) -> AsyncIterator[None]:
        """A context that is entered when there is room for a request, which is given back at its end.

        Args:
            key: the name of the API key.
            texts: how many texts the request wants; one for more than `running` waits until nothing else runs.
            seconds: how long it may wait.

        Raises:
            ApiError: 429 where the key has too many waiting, 503 where all have or the time has passed.
        """
        texts = min(texts, self._queue.running)
        await self._admit(key, texts, seconds)
        try:
            yield
        finally:
            self._give_back(texts)

    async def _admit(self, key: str, texts: int, seconds: float) -> None:
        if not self._lines and texts <= self._free:
            self._free -= texts
            return
        self._refuse_one_too_many(key)
        waiting = _Waiting(texts, asyncio.get_running_loop().create_future())
        self._lines.setdefault(key, deque()).append(waiting)
        try:
            async with asyncio.timeout(seconds):
                await waiting.admitted
        except BaseException as error:
            if waiting.admitted.done() and not waiting.admitted.cancelled():
                self._give_back(texts)
            else:
                self._leave(key, waiting)
            if isinstance(error, TimeoutError):
                message = f"the request waited {seconds:.3g} s for its turn, all the time that it had"
                raise ApiError(503, message, code="deadline_passed", retry_after=RETRY_AFTER) from None
            raise

    def _refuse_one_too_many(self, key: str) -> None:
        own = len(self._lines.get(key, ()))
        if own >= self._queue.waiting_per_key:
            message = f"{own} requests with this API key are waiting already; send fewer at a time"
            raise ApiError(429, message, code="too_many_waiting", retry_after=RETRY_AFTER)
        if self.waiting >= self._queue.waiting:
            message = f"{self.waiting} requests are waiting already, as many as this server takes; try again later"
            raise ApiError(503, message, code="queue_full", retry_after=RETRY_AFTER)

    def _leave(self, key: str, waiting: _Waiting) -> None:
        line = self._lines.get(key)
        if line is not None and waiting in line:
            line.remove(waiting)
            if not line:
                del self._lines[key]
        self._admit_next()  # it may have been the one that those behind it waited for

    def _give_back(self, texts: int) -> None:
        self._free += texts
        self._admit_next()

    def _admit_next(self) -> None:
        while self._lines:
            key, line = next(iter(self._lines.items()))
            if line[0].texts > self._free:
                return
            waiting = line.popleft()
            del self._lines[key]
            if line:
                self._lines[key] = line  # behind the others
            if not waiting.admitted.done():
                self._free -= waiting.texts
                waiting.admitted.set_result(None)
