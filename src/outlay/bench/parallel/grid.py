"""The ways of decoding that are compared: `confidence:1,2,4`, `threshold:0.5,0.9`, or any method by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from outlay.errors import UsageError, nearest

ALL = "all"
TOP_K = ("confidence", "margin", "entropy", "random", "left")
KINDS = (*TOP_K, "threshold", "factor")
DEFAULT = ("confidence:1,2,4,8", "random:1,2,4,8", "threshold:0.5,0.6,0.7,0.8,0.9,1", "factor:0.7,1,1.3,1.6,1.9")


@dataclass(frozen=True)
class Way:
    """One way of decoding."""

    kind: str
    """One of `KINDS`, or "method"."""
    value: float
    """Tokens of a round, the threshold or the factor; 0 for a method by name."""
    block: str
    """Positions of a block, or "all"."""
    method: Callable[[int], str]
    """Returns the method for a canvas of a number of positions."""

    def __str__(self) -> str:
        if self.kind == "method":
            return self.method(0)
        return f"{self.kind} {self.value:g}" + (f", blocks of {self.block}" if self.block != ALL else "")


def ways(grid: Sequence[str], methods: Sequence[str], blocks: Sequence[str]) -> list[Way]:
    """Returns all ways that a grid names.

    Args:
        grid: Such as `confidence:1,2,4`.
        methods: Methods by name, with their options; each as it is.
        blocks: Positions of a block, or "all"; the grid is gone through with each of them.

    Raises:
        UsageError: A kind or a value that there isn't.
    """
    strange = next((block for block in blocks if block != ALL and not (block.isdecimal() and int(block))), None)
    if strange is not None:
        raise UsageError(f"a block is a whole number of positions or all, not {strange!r}")
    found = [way for block in blocks for text in grid for way in _ways(text, block)]
    return [*found, *(Way("method", 0.0, ALL, _named(text)) for text in methods)]


def _named(text: str) -> Callable[[int], str]:
    return lambda canvas: text


def _ways(text: str, block: str) -> Iterator[Way]:
    kind, _, written = text.partition(":")
    if kind not in KINDS:
        raise UsageError(f"the grid has no kind {kind!r}{nearest(kind, KINDS)}; there are {', '.join(KINDS)}")
    for part in written.split(","):
        try:
            value = float(part)
        except ValueError:
            raise UsageError(f"{kind} takes numbers, as in {kind}:1,2,4, not {part!r}") from None
        if value <= 0 or (kind in TOP_K and value != int(value)):
            raise UsageError(f"{kind} takes numbers above 0{' that are whole' * (kind in TOP_K)}, not {part}")
        yield Way(kind, value, block, _method(kind, value, block))


def _method(kind: str, value: float, block: str) -> Callable[[int], str]:
    if kind == "threshold":
        return lambda canvas: f"threshold:tau={value:g},block={block}"
    if kind == "factor":
        return lambda canvas: f"factor:factor={value:g},block={block}"

    def schedule(canvas: int) -> str:
        size = canvas if block == ALL else int(block)
        if size % value:
            what = f"a canvas of {canvas}" if block == ALL else f"blocks of {block}"
            raise UsageError(f"rounds of {value:g} tokens don't divide {what}; take a divisor")
        if kind == "left":
            return f"llada:steps={-(-canvas // int(value))},block={value:g}"
        return f"llada:steps={-(-canvas // size) * int(size / value)},block={block},by={kind}"

    return schedule
