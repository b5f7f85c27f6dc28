"""What a task of the benchmark is: samples, each a prompt with a right answer and a judgement of any text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Sample:
    """One question."""

    prompt: Prompt
    """The question, after an example if the task gives one."""
    answer: str
    """A right answer, as it should be written."""
    score: Callable[[str, bool], float]
    """Rates a text from 0 to 1; the second argument says whether its form has to be that of the example, too."""


@dataclass(frozen=True)
class Task:
    """A kind of question."""

    name: str
    """Its name, `family/task`."""
    canvas: int
    """Positions of the canvas."""
    draw: Callable[[int, tuple[int, int], int], Sequence[Sample]]
    """Returns samples from a seed, of lists whose number of items lies in a range."""


def one_shot(question: str, answer: str, asked: str) -> list[dict[str, Any]]:
    """Returns a conversation with one example before the question."""
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": asked},
    ]
