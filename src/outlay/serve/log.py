"""The server's log: a JSON object a line on stderr. It holds no prompts and no texts unless that was asked for."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any, TextIO


class Log:
    """Writes events, each a JSON object on a line of its own."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def __call__(self, event: str, **facts: Any) -> None:
        """Writes an event with what is known of it; facts that are None are left out."""
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        row = {"time": now, "event": event} | {name: value for name, value in facts.items() if value is not None}
        print(json.dumps(row, default=str), file=self._stream or sys.stderr, flush=True)


class LogHandler(logging.Handler):
    """Hands what Python's logging is told, uvicorn's errors above all, to a `Log`."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
        self._log(record.levelname.lower(), message=record.getMessage(), trace=trace)
