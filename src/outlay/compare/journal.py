"""The journal of a comparison: a JSON line for each finished run, so that a killed comparison loses nothing.

A line counts once it ends with a newline; the half-written last line of a process that was killed is cut off. The
answer of a run is written with the first of its repeats only; the others say whether theirs was the same. The number of
an item stands under `prompt`, whatever the items are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from outlay.errors import FailureError

Key = tuple[str, str, int, int, int]
SAID = ("text", "tokens", "found")
"""What makes an answer: of texts the first two, of pictures the last."""
OUTPUT = (*SAID, "pieces", "origins")


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a journal. Raises `FailureError` for a line that is no JSON object."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise FailureError(f"line {number} of {path} is damaged; remove it, and its run is done again")
            yield row


class Appender:
    """Adds lines to a file; first it cuts off the last line that a killed process left unfinished."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")
        self._file.truncate(_whole(path))

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes rows and hands them to the system at once. Raises `FailureError` where that fails."""
        written = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows]
        try:
            self._file.write("".join(written).encode("utf-8", "replace"))
            self._file.flush()
        except OSError as error:
            raise FailureError(f"can't write {self._file.name}: {error.strerror}") from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Journal:
    """The runs that are done; more are added as they finish."""

    def __init__(self, path: Path) -> None:
        self.done: set[Key] = set()
        self._outputs: dict[tuple[str, str, int, int], str] = {}
        for row in lines(path):
            self._note(row)
        self._appender = Appender(path)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes the runs that are not there already."""
        fresh = []
        for row in rows:
            if _key(row) not in self.done:
                same = has_output(row) and self._outputs.get(_key(row)[:4]) == output_of(row)
                self._note(row)
                fresh.append(_without_output(row) if same else row)
        self._appender.add(fresh)

    def close(self) -> None:
        """Closes the file."""
        self._appender.close()

    def _note(self, row: Mapping[str, Any]) -> None:
        self.done.add(_key(row))
        if has_output(row):
            self._outputs.setdefault(_key(row)[:4], output_of(row))


def _without_output(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in OUTPUT} | {"same": True}


def _key(row: Mapping[str, Any]) -> Key:
    return row["method"], row["budget"], row["prompt"], row["seed"], row["repeat"]


def has_output(row: Mapping[str, Any]) -> bool:
    """Tells whether a row holds an answer: it did not fail, and no earlier repeat holds the same."""
    return any(name in row for name in SAID)


def output_of(row: Mapping[str, Any]) -> str:
    """Returns a digest of what a run answered."""
    said = [row[name] for name in SAID if name in row]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=12).hexdigest()


def _whole(path: Path) -> int:
    """Returns the length of the file up to its last newline."""
    content = path.read_bytes()
    return content.rfind(b"\n") + 1
