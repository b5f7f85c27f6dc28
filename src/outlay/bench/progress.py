"""Shows how far a benchmark is."""

from __future__ import annotations

import sys


class PhaseLine:
    """Shows how far a run is on stderr: one line, written over, on a terminal; a line for each phase elsewhere."""

    def __init__(self) -> None:
        self._live, self._phase = sys.stderr.isatty(), ""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Shows `phase` and how much of it is done."""
        if self._live:
            end = "\r" if done + 1 < total else "\r\x1b[K"
            print(f"\r\x1b[Koutlay: {phase} ({done + 1} of {total})", end=end, file=sys.stderr, flush=True)
        elif phase != self._phase:
            print(f"outlay: {phase}", file=sys.stderr, flush=True)
        self._phase = phase
