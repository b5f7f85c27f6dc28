"""The acceptance model: how probable it is that a candidate is accepted, by its source, level and confidence.

A source says how confident it is of each candidate. What became of earlier candidates of the same source and level, of
about the same confidence, corrects that: a Beta-like count of hits, whose prior is the source's own word.
"""

from __future__ import annotations

from outlay.decode.draft.auto.config import AutoConfig


class Mean:
    """A mean over the last `window` observations or so; `start` before the first one, of which `seen` counts them."""

    def __init__(self, start: float, window: float) -> None:
        self.value, self.seen, self._window = start, 0.0, window

    def observe(self, value: float) -> None:
        """Takes an observation in."""
        self.seen = min(self.seen + 1, self._window)
        self.value += (value - self.value) / self.seen

    def fade(self, weight: float) -> None:
        """Lets what was observed count for a few observations at most."""
        self.seen = min(self.seen, weight)


class Calibration:
    """The hits of one source at one level, by confidence."""

    def __init__(self, source: str, config: AutoConfig) -> None:
        self.source = source
        self._bins, self._fade = config.bins, 1 - 1 / config.window
        places = config.bins + 1
        self._prior, self._hits, self._tried = [config.prior] * places, [0.0] * places, [0.0] * places

    def probability(self, confidence: float) -> float:
        """Returns how probable it is that a candidate is accepted after its parent was.

        Args:
            confidence: What the source says, from 0 to 1.
        """
        at = round(self._bins * confidence)
        prior = self._prior[at]
        return (self._hits[at] + prior * confidence) / (self._tried[at] + prior)

    def observe(self, confidence: float, hit: bool) -> None:
        """Takes in what became of a candidate whose parent was accepted."""
        at = round(self._bins * confidence)
        self._prior[at] *= self._fade
        self._tried[at] = self._fade * self._tried[at] + 1
        self._hits[at] = self._fade * self._hits[at] + hit


class AcceptanceModel:
    """The calibrations of all sources and levels, learned from committed tokens."""

    def __init__(self, config: AutoConfig) -> None:
        self._config = config
        self._known: dict[tuple[str, int], Calibration] = {}

    def of(self, source: str, level: int) -> Calibration:
        """Returns the calibration of a source at one level: a depth, or the length of a match."""
        key = source, level
        if key not in self._known:
            self._known[key] = Calibration(source, self._config)
        return self._known[key]
