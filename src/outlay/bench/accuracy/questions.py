"""Tasks of `lm_eval` that the original can do: how many of its right answers another checkpoint still gives."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from outlay.bench.data import ROOT, TASKS
from outlay.bench.peer import peer
from outlay.compare import statistics
from outlay.lm import LM

ASKED = ("story_choices", "story_letters", "story_answers")
"""Tasks in `benchmarks/tasks` whose answers are right or wrong."""
METRICS = ("acc", "exact_match")


class Answer(NamedTuple):
    """How a model answered one document of a task."""

    right: float
    """1 if it was right, else 0."""
    chance: float
    """The probability that a guess is: 1 over the choices, 0 where none are given."""


def answers(lm: LM, task: str, docs: int) -> list[Answer]:
    """Asks a model the first documents of a task.

    Args:
        lm: The model.
        task: A task in `benchmarks/tasks`.
        docs: Documents, at most.

    Raises:
        FailureError: The `lm_eval` package is not installed.
    """
    peer("lm_eval", "lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from outlay.compare.lm_eval import OutlayLM

    os.chdir(ROOT)  # the tasks name their files from there
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    found: Any = simple_evaluate(
        OutlayLM(lm), tasks=[task], limit=docs, task_manager=manager, bootstrap_iters=0, verbosity="ERROR"
    )
    return [answer_of(sample) for sample in found["samples"][task]]


def answer_of(sample: Mapping[str, Any]) -> Answer:
    """Returns the answer that a sample of `lm_eval` holds."""
    choices = len(sample["resps"]) if "acc" in sample else 0
    right = next(float(sample[metric]) for metric in METRICS if metric in sample)
    return Answer(right, 1 / choices if choices else 0.0)


def compared(task: str, original: Sequence[Answer], others: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """Returns what is reported of a task.

    Args:
        task: Its name.
        original: The original's answers.
        others: The answers of other checkpoints to the same documents, by name.

    Returns:
        The documents; the shares that the original and guesses have right; `is_clear`, whether the 95 % interval of
        their difference is above 0; and of each other checkpoint its share and its difference from the original's with
        the interval of a paired bootstrap.
    """
    right, chance = ([float(value) for value in values] for values in zip(*original, strict=True))
    above = statistics.difference(right, chance)
    shares = {name: [each.right for each in given] for name, given in others.items()}
    return {
        "task": task,
        "docs": len(original),
        "original": sum(right) / len(right),
        "chance": sum(chance) / len(chance),
        "is_clear": above.low > 0,
        "others": {
            name: {"share": sum(own) / len(own), "change": list(statistics.difference(own, right))}
            for name, own in shares.items()
        },
    }
