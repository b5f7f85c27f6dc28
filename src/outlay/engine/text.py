"""The text of a run as it grows: tokens in, printable text out, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from outlay.models.tokenizer import Tokenizer


class TextStream:
    """Turns tokens into text and looks for stop strings, also across token borders.

    Text that may be the start of a stop string is held back until the next tokens tell.

    Attributes:
        text: all text that is certain so far.
        stopped: whether a stop string was met.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._decoder = tokenizer.decoder_stream()
        self._stop = tuple(stop)
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Adds a token; returns the text that is certain now."""
        return self._add(self._decoder.push(token))

    def flush(self) -> str:
        """Returns what was held back, at the end of the run."""
        return "" if self.stopped else self._add(self._decoder.flush(), final=True)

    def _add(self, decoded: str, *, final: bool = False) -> str:
        if not self._stop:
            self.text += decoded
            return decoded
        self._held += decoded
        met = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if met:
            self.stopped = True
            certain = min(met)
        else:
            certain = len(self._held) if final else len(self._held) - self._start_of_stop()
        added, self._held = self._held[:certain], self._held[certain:]
        self.text += added
        return added

    def _start_of_stop(self) -> int:
        """Returns the length of the longest end of the held text that a stop string starts with."""
        longest = max(map(len, self._stop)) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
