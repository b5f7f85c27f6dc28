"""Which positions of a canvas a pass computes: the keys and values of the others are those of an earlier pass."""

from __future__ import annotations

from typing import Literal

CacheName = Literal["auto", "none", "prefix", "dual", "exact"]


def computed_rows(cache: str, canvas: tuple[int, int], view: tuple[int, int], *, first: bool) -> range:
    """Returns the positions that a round computes.

    Args:
        cache: "none" computes the whole canvas, "prefix" what does not precede the block, "dual" the block alone (Wu et
            al. 2025, Fast-dLLM). With "exact" the canvas is the block alone, behind keys and values that don't change;
            the block before is on it once more, to be computed with its last tokens.
        canvas: First position of the canvas and the one behind its last.
        view: The same of the block with the blocks that are looked ahead to.
        first: Whether this is the first round of the block, in which the approximate caches compute everything.
    """
    (begin, end), (from_, to) = canvas, view
    if cache in ("none", "exact") or first:
        return range(begin, end)
    if cache == "prefix":
        return range(max(begin, from_), end)
    return range(max(begin, from_), min(to, end))
