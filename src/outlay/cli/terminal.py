"""What output looks like: colour and progress where there is a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

SETTLED = 5.0  # seconds from which on the time that is left is shown
REDRAW = 0.1  # seconds between two pictures of a progress bar


def is_terminal(stream: TextIO) -> bool:
    """Tells whether `stream` is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colour(stream: TextIO) -> bool:
    """Tells whether `stream` shows colour and the user wants it (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def dim(text: str, stream: TextIO) -> str:
    """Returns `text`, faint where `stream` has colour."""
    return f"\x1b[2m{text}\x1b[0m" if has_colour(stream) else text


def bold(text: str, stream: TextIO) -> str:
    """Returns `text`, bold where `stream` has colour."""
    return f"\x1b[1m{text}\x1b[0m" if has_colour(stream) else text


class Palette:
    """Colours text by a name: each name that is met gets the next colour, "" none."""

    COLOURS = (32, 36, 35, 33, 34, 31)

    def __init__(self, stream: TextIO) -> None:
        self._wanted = has_colour(stream)
        self._known: dict[str, int] = {}

    def __call__(self, text: str, name: str) -> str:
        """Returns `text` in the colour of `name`."""
        if not name or not self._wanted:
            return text
        place = self._known.setdefault(name, NAMED.get(name, len(self._known)))
        return f"\x1b[{self.COLOURS[place % len(self.COLOURS)]}m{text}\x1b[0m"


NAMED = {
    "head": 0,
    "draft": 0,
    "lookup": 1,
    "table": 2,
    "ppd": 3,
    "superposed": 4,
    "forced": 5,
}  # the same colour everywhere


def columns() -> int:
    """Returns the width to write to: the terminal's, at most 100; 100 without one."""
    return min(shutil.get_terminal_size((100, 24)).columns, 100)


def rule(stream: TextIO) -> str:
    """Returns a faint line across the terminal."""
    return dim(glyph("─", "-", stream) * min(columns(), 60), stream)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO) -> str:
    """Returns rows under a faint header, in columns; the last one is wrapped where it is too long."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    start = sum(width + 2 for width in widths[:-1])
    room = max(columns() - start, 30)

    def line(row: Sequence[str]) -> str:
        cells = [f"{cell:<{width}}" for cell, width in zip(row[:-1], widths, strict=False)]
        last = textwrap.wrap(row[-1], room) or [""]
        return ("  ".join([*cells, last[0]]) + "".join("\n" + " " * start + more for more in last[1:])).rstrip()

    return "\n".join([dim(line(header), stream), *map(line, rows)])


def pairs(rows: Sequence[tuple[str, str]], stream: TextIO) -> str:
    """Returns a name and its value on each line, the names faint, the values in a column and wrapped."""
    width = max(len(name) for name, _ in rows) + 2
    room = max(columns() - width, 30)
    lines = []
    for name, value in rows:
        first, *more = textwrap.wrap(value, room) or [""]
        lines.append(dim(name, stream) + " " * (width - len(name)) + first)
        lines += [" " * width + part for part in more]
    return "\n".join(lines)


def size(amount: float) -> str:
    """Returns a number of bytes in the unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}" if amount < 100 else f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"


class Progress:
    """Shows `progress(phase, done, total)` as one line on a terminal, and takes it away at the end.

    Elsewhere a fetch gets one line when it starts, and nothing else is shown.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._live = is_terminal(self._stream) and not quiet
        self._phase = ""
        self._started = self._drawn = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live and self._phase:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Shows how far `phase` is: `done` of `total`, which is 0 where it is not known; bytes if it is a fetch."""
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._started = phase, now
            if not self._live and not self._quiet and _is_fetch(phase):
                print(f"outlay: {phase} ({size(total)})" if total else f"outlay: {phase}", file=self._stream)
        elif now - self._drawn < REDRAW and done < total:
            return
        if self._live:
            self._drawn = now
            self._stream.write("\r\x1b[K" + self._picture(done, total, now - self._started))
            self._stream.flush()

    def _picture(self, done: int, total: int, seconds: float) -> str:
        figures = _figures(done, total, seconds) if _is_fetch(self._phase) else _time_left(done, total, seconds)
        if total <= 0:
            return f"{self._phase} {figures}"[: columns() - 1]
        share = min(done / total, 1.0)
        figures = f" {share:4.0%}{figures}"
        room = min(columns() - 3 - len(self._phase) - len(figures), 40)
        if room < 5:
            return f"{self._phase}{figures}"[: columns() - 1]
        full = round(share * room)
        mark = glyph("━", "=", self._stream)
        rest = mark if has_colour(self._stream) else " "
        return f"{self._phase} {mark * full}{dim(rest * (room - full), self._stream)}{figures}"


def _is_fetch(phase: str) -> bool:
    return phase.startswith("fetching")


def _time_left(done: int, total: int, seconds: float) -> str:
    """Returns how long the rest takes at the rate so far, once that is known."""
    if not 0 < done < total or seconds < SETTLED:
        return ""
    minutes, rest = divmod(round(seconds * (total - done) / done), 60)
    return f"  {minutes}:{rest:02} left"


def _figures(done: int, total: int, seconds: float) -> str:
    amount = f"{size(done)} of {size(total)}" if total else size(done)
    rate = f", {size(done / seconds)}/s" if seconds > 0.5 else ""
    return f"  {amount}{rate}"


def glyph(fine: str, plain: str, stream: TextIO) -> str:
    """Returns `fine`, or `plain` where the stream's encoding may lack it."""
    return fine if "utf" in (stream.encoding or "").lower() else plain
