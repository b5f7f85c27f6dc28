"""What Ctrl-C and SIGTERM do: clean ends, with what was done so far."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """Raised for SIGTERM, as `KeyboardInterrupt` is for SIGINT, so that half-written files are cleaned up."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within it, SIGTERM raises `Terminated`."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Interruption:
    """Within it, the first SIGINT or SIGTERM calls `stop` and raises nothing; the next one ends the process at once.

    `status` is the exit status that the signal asks for, 0 if there was none.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self.status = 0

    def __enter__(self) -> Interruption:
        self._before = [signal.signal(number, self._received) for number in SIGNALS]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in zip(SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        for every in SIGNALS:
            signal.signal(every, signal.SIG_DFL)
        self.status = 128 + number
        self._stop()
