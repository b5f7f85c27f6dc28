"""Captions of glyph scenes: what a method writes, and how two methods differ on the same scenes, with intervals.

An interval resamples scenes, with the captions that both methods wrote of a scene together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from outlay.attend.policy import CachePolicy
from outlay.engine.handle import Result
from outlay.lm import LM
from outlay.metrics import CaptionCounts
from outlay.problems.glyphs import QUESTION, Scene

LONGEST = 12  # tokens of a caption: ten words, the end, and one that is too many
TOGETHER = 64  # scenes that are captioned at once
RESAMPLES = 2000


def captions_of(
    lm: LM, scenes: Sequence[Scene], method: str, cache: str | CachePolicy | None = None
) -> tuple[list[str], list[Result]]:
    """Returns a method's captions, and the results that they are from, a scene each."""
    results: list[Result] = []
    for begin in range(0, len(scenes), TOGETHER):
        part = scenes[begin : begin + TOGETHER]
        images = [[scene.image] for scene in part]
        results += lm.generate_batch(
            [QUESTION] * len(part), images=images, method=method, cache=cache, max_tokens=LONGEST
        )
    return [result.text.strip() for result in results], results


def chair_ratio(ones: Sequence[CaptionCounts], others: Sequence[CaptionCounts]) -> dict[str, float]:
    """Returns CHAIR_i of `others` over that of `ones`, captions of the same scenes, with its 95 % interval."""
    a, b = (_columns(each, "hallucinated", "mentions") for each in (ones, others))
    return _interval(len(ones), lambda rows: _share(b, rows) / np.maximum(_share(a, rows), 1e-9))


def recall_difference(ones: Sequence[CaptionCounts], others: Sequence[CaptionCounts]) -> dict[str, float]:
    """Returns the recall of `others` minus that of `ones`, with its 95 % interval."""
    a, b = (_columns(each, "found", "present") for each in (ones, others))
    return _interval(len(ones), lambda rows: _share(b, rows) - _share(a, rows))


def share_difference(ones: Sequence[bool], others: Sequence[bool]) -> dict[str, float]:
    """Returns the share of `others` that hold minus that of `ones`, of the same scenes, with its 95 % interval."""
    change = np.array(others, dtype=np.float64) - np.array(ones, dtype=np.float64)
    return _interval(len(ones), lambda rows: change[rows].mean(-1))


def points(difference: Any) -> str:
    """Returns a difference of shares in points, with its interval: "+1.0 (-0.5 to +2.5)"."""
    value, low, high = (100 * difference[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _columns(counts: Sequence[CaptionCounts], *names: str) -> npt.NDArray[np.float64]:
    return np.array([[getattr(each, name) for name in names] for each in counts], dtype=np.float64)


def _share(columns: npt.NDArray[np.float64], rows: npt.NDArray[np.intp]) -> Any:
    sums = columns[rows].sum(-2)
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


def _interval(count: int, statistic: Any) -> dict[str, float]:
    draw = np.random.default_rng(0)
    drawn = [float(statistic(draw.integers(0, count, count))) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": float(statistic(np.arange(count))), "low": float(low), "high": float(high)}
