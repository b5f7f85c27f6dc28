"""Rates the texts of a comparison once they are all there, each different text of a prompt once, and keeps the marks.

The marks stand in a journal of their own, so that another metric, or one that failed, takes no new runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from outlay.compare import journal
from outlay.compare.items import Item
from outlay.compare.metrics import Completion, Metric
from outlay.lm import LM

TOGETHER = 32


def rate(
    runs: Path,
    marks: Path,
    metric: Metric,
    items: Sequence[Item],
    lm: LM,
    encode: Callable[[int], list[int]],
    progress: Callable[[str, int, int], None],
) -> None:
    """Adds the marks that are not there yet. Raises what the metric raises; marks given before that stay."""
    known = read(marks, metric.key)
    wanted: dict[tuple[int, str], Completion] = {}
    for row in journal.lines(runs):
        if "tokens" in row and (key := (row["prompt"], journal.output_of(row))) not in known:
            wanted[key] = Completion(row["prompt"], items[row["prompt"]], row["text"], tuple(row["tokens"]))
    with closing(journal.Appender(marks)) as appender:
        for start in range(0, len(wanted), TOGETHER):
            progress(f"rating texts by {metric.key}", start, len(wanted))
            part = dict(itertools.islice(wanted.items(), start, start + TOGETHER))
            scores = metric.scores(lm, [encode(number) for number, _ in part], list(part.values()))
            appender.add(
                {"metric": metric.key, "prompt": number, "output": output, "quality": score}
                for (number, output), score in zip(part, scores, strict=True)
            )


def read(path: Path, key: str) -> dict[tuple[int, str], float | None]:
    """Returns the marks of a metric by the prompt's number and `journal.output_of` of the run."""
    return {(row["prompt"], row["output"]): row["quality"] for row in journal.lines(path) if row["metric"] == key}
