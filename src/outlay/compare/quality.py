"""Rates the texts of a comparison once all are written, each different text of a prompt once.

The marks have a journal of their own, so that another metric, or one that failed, takes no new runs.
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
from outlay.progress import ShowProgress

TOGETHER = 32


def rate(
    runs: Path,
    marks: Path,
    metric: Metric,
    items: Sequence[Item],
    lm: LM,
    encode: Callable[[int], list[int]],
    progress: ShowProgress,
) -> None:
    """Adds the marks that are missing. Raises what the metric raises; marks that were given before stay.

    Args:
        runs: the journal of the runs.
        marks: the journal of the marks.
        metric: what rates the texts.
        items: the prompts.
        lm: the model that wrote the texts.
        encode: returns the token ids of a prompt by its number.
        progress: is told how far the work is.
    """
    known = read(marks, metric.key)
    unrated: dict[tuple[int, str], Completion] = {}
    for row in journal.lines(runs):
        if "tokens" in row and (key := (row["prompt"], journal.output_of(row))) not in known:
            unrated[key] = Completion(row["prompt"], items[row["prompt"]], row["text"], tuple(row["tokens"]))
    with closing(journal.Appender(marks)) as appender:
        for start in range(0, len(unrated), TOGETHER):
            progress(f"rating texts by {metric.key}", start, len(unrated))
            part = dict(itertools.islice(unrated.items(), start, start + TOGETHER))
            scores = metric.scores(lm, [encode(number) for number, _ in part], list(part.values()))
            appender.add(
                {"metric": metric.key, "prompt": number, "output": output, "quality": score}
                for (number, output), score in zip(part, scores, strict=True)
            )


def read(path: Path, key: str) -> dict[tuple[int, str], float | None]:
    """Returns the marks of a metric by the prompt's number and `journal.output_of` of the run."""
    return {(row["prompt"], row["output"]): row["quality"] for row in journal.lines(path) if row["metric"] == key}
