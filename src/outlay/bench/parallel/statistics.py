"""What ParallelBench derives from the points of a grid (Kang et al. 2025): oracle, parallelizability, leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from statistics import mean
from typing import Any

Point = Mapping[str, Any]
"""One way on one task: `kind`, `value`, `block`, `score`, `passes`, `tokens_per_pass`, and the `scores` and
`passes_of` of each sample."""


def oracle(points: Sequence[Point]) -> dict[str, float] | None:
    """Returns what choosing the best threshold for each sample would reach; None where there is none.

    For each sample it takes the fewest passes among the thresholds that reach the sample's best score.
    """
    runs = _thresholds(points)
    if not runs:
        return None
    scores, passes = [], []
    for of_sample in zip(*(zip(run["scores"], run["passes_of"], strict=True) for run in runs), strict=True):
        best = max(score for score, _ in of_sample)
        scores.append(best)
        passes.append(min(spent for score, spent in of_sample if score == best))
    return {"score": mean(scores), "passes": mean(passes)}


def best_threshold(points: Sequence[Point]) -> Point | None:
    """Returns the fixed threshold of the best score, with the fewest passes among equals; None where there is none."""
    return min(_thresholds(points), key=lambda point: (-point["score"], point["passes"]), default=None)


def parallelizability(points: Sequence[Point], kind: str) -> float | None:
    """Returns the centre of mass of the scores over the tokens of a round, low where a task is hard to do in parallel.

    None where nothing was right.
    """
    over = [(point["value"], point["score"]) for point in points if point["kind"] == kind and point["block"] == "all"]
    total = sum(score for _, score in over)
    return sum(k * score for k, score in over) / total if total else None


def order_preference(points: Sequence[Point], kind: str, canvas: int, k: float = 2) -> float | None:
    """Returns how much the score rises each time a block is twice as long, at two tokens a round.

    It is the slope of least squares over log2 of the block's length; above 0 where any order is better than from left
    to right. None for fewer than two lengths.
    """
    of_kind = [point for point in points if point["kind"] == kind and point["value"] == k]
    x = [log2(canvas if point["block"] == "all" else int(point["block"])) for point in of_kind]
    y = [point["score"] for point in of_kind]
    if len(set(x)) < 2:
        return None
    middle, height = mean(x), mean(y)
    return sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def leaderboard(points: Sequence[Point], least: float) -> list[tuple[str, float, float]]:
    """Returns the most tokens a pass at a mean score of at least `least`, for each kind that reaches it.

    Args:
        points: Points of all tasks; those of one way are averaged.
        least: The score.

    Returns:
        The way, its tokens a pass and its score, for each kind, the fastest first.
    """
    by_way: dict[str, list[Point]] = {}
    for point in points:
        by_way.setdefault(point["way"], []).append(point)
    best: dict[str, tuple[str, float, float]] = {}
    for way, of_way in by_way.items():
        score = mean(point["score"] for point in of_way)
        speed, kind = mean(point["tokens_per_pass"] for point in of_way), of_way[0]["kind"]
        kind = way if kind == "method" else kind
        if score >= least and (kind not in best or speed > best[kind][1]):
            best[kind] = (way, speed, score)
    return sorted(best.values(), key=lambda entry: -entry[1])


def _thresholds(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point["kind"] == "threshold"]
