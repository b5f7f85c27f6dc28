"""The file that `--trace` writes: a JSON object a line for each event, in the order in which they happen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from outlay.errors import FailureError, UsageError

Write = Callable[[dict[str, Any]], None]


class TraceFile:
    """Opens its file at the first event, so that a run which fails before leaves none.

    The constructor raises `UsageError` for a path that can't be written. Events come from the engine's thread, where
    nothing may raise: the first error is kept for `close`.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._file: TextIO | None = None
        self._closed = False
        self._error: OSError | None = None
        _check(self._path)

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def writer(self, run: int) -> Write:
        """Returns the function that writes the events of one run, each with the run's number."""
        return lambda event: self._write({"run": run, **event})

    def close(self) -> None:
        """Ends the file. Raises `FailureError` if an event could not be written."""
        self._closed = True
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:
            self._error = self._error or error
        if self._error is not None:
            failure, self._error = self._error, None
            raise FailureError(f"the trace {self._path} is not complete: {failure.strerror}") from failure

    def _write(self, event: dict[str, Any]) -> None:
        if self._closed or self._error is not None:
            return
        try:
            if self._file is None:
                self._file = self._path.open("w", encoding="utf-8")
            self._file.write(json.dumps(event) + "\n")
            if event["event"] == "finish":
                self._file.flush()
        except OSError as error:
            self._error = error


def _check(path: Path) -> None:
    """Raises `UsageError` if a file can't be written at `path`; changes nothing there."""
    if path.exists() and not path.is_file() and not path.is_dir():
        return  # a pipe or a device: opening it may wait for its reader
    new = not path.exists()
    try:
        path.open("a").close()
        if new:
            path.unlink()
    except OSError as error:
        raise UsageError(f"can't write the trace to {path}: {error.strerror}") from error
