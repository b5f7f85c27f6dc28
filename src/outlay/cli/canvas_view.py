"""A canvas on a terminal while it is filled: masks faint, each token in the colour of the round that filled it."""

from __future__ import annotations

import shutil
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from outlay.cli import terminal

if TYPE_CHECKING:
    from outlay.engine.session import TextChunk

REDRAW = 0.03  # seconds between two pictures: about 30 a second
Painted = tuple[str, int]  # a character, and the number of the round that filled it, 0 for what is masked


class CanvasView:
    """Draws the canvas of one run in place, from the events of its trace; at the end its text takes the place.

    It is called in the engine's thread, as long as the run goes on, and `write` in the caller's after that.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._mark = terminal.Palette(stream)
        self._cells: list[str | None] = []
        self._rounds: list[int] = []
        self._begin = self._lines = 0
        self._drawn = 0.0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Takes in an event of the run's trace."""
        if event["event"] == "canvas":
            self._begin = event["begin"]
            self._cells, self._rounds = [None] * event["length"], [0] * event["length"]
        elif event["event"] == "fill":
            for cell in event["cells"]:
                if cell["filled"]:
                    place = cell["position"] - self._begin
                    self._cells[place], self._rounds[place] = _shown(cell, self._stream), event["round"]
        else:
            return
        if time.monotonic() - self._drawn >= REDRAW:
            self._draw()

    def write(self, chunks: Sequence[TextChunk]) -> None:
        """Writes the text in place of the canvas, each chunk in the colour of the round that filled its first token."""
        place, text = 0, ""
        self._clear()
        for chunk in chunks:
            number = self._rounds[place] if chunk.tokens and place < len(self._rounds) else 0
            self._stream.write(self._painted(chunk.text, number))
            place, text = place + len(chunk.tokens), chunk.text or text
        self._stream.write("" if text.endswith("\n") else "\n")
        self._stream.flush()

    def _draw(self) -> None:
        size = shutil.get_terminal_size((80, 24))
        lines = list(wrapped(self._characters(), size.columns - 1))
        shown = window(lines, size.lines - 1)
        self._clear()
        self._stream.write("\n".join(map(self._line, shown)) + "\n")
        self._stream.flush()
        self._lines, self._drawn = len(shown), time.monotonic()

    def _characters(self) -> Iterator[Painted]:
        masked = terminal.glyph("░", ".", self._stream)
        for cell, number in zip(self._cells, self._rounds, strict=True):
            yield from ((letter, number) for letter in (masked if cell is None else cell))

    def _line(self, line: Sequence[Painted]) -> str:
        return "".join(self._painted(letter, number) for letter, number in line)

    def _painted(self, text: str, number: int) -> str:
        if not number:
            return terminal.dim(text, self._stream)
        return self._mark(text, str(number))

    def _clear(self) -> None:
        """Takes the last picture away, with the cursor where it began."""
        if self._lines:
            self._stream.write(f"\x1b[{self._lines}A\r\x1b[J")
            self._lines = 0


def wrapped(letters: Iterator[Painted], columns: int) -> Iterator[list[Painted]]:
    """Breaks characters into lines of at most `columns`, and at each newline."""
    line: list[Painted] = []
    taken = 0
    for letter, number in letters:
        wide = _width(letter)
        if letter == "\n" or taken + wide > columns:
            yield line
            line, taken = [], 0
        if letter != "\n":
            line.append((letter, number))
            taken += wide
    yield line


def window(lines: Sequence[Sequence[Painted]], rows: int) -> Sequence[Sequence[Painted]]:
    """Returns as many lines as fit, around the first one with a mask."""
    first = next((place for place, line in enumerate(lines) if any(not number for _, number in line)), len(lines))
    top = max(0, min(first - rows // 2, len(lines) - rows))
    return lines[top : top + max(rows, 1)]


def _shown(cell: Mapping[str, Any], stream: TextIO) -> str:
    """Returns how a token is drawn: no character of it moves the cursor but a newline."""
    if "name" in cell:
        return terminal.glyph("·", " ", stream)  # an end token, say
    if "bytes" in cell:
        return terminal.glyph("\N{REPLACEMENT CHARACTER}", "?", stream)
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in cell["text"])


def _width(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
