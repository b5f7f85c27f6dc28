"""Ten tasks on lists, whose tokens depend on each other to different degrees (Kang et al. 2025, ParallelBench).

A copy or a sorted list is a function of the question, so all of its items can be written at once. Of a shuffled list,
or of one in which any one item is replaced, each item depends on what the others are.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SUMMARY = "ten tasks on lists of 3 to 6 letters: copy, sort, shuffle, replace one, ..."
TASKS = (
    "copy", "reverse", "sort", "shuffle", "insert_index", "insert_random", "remove_index", "remove_random",
    "replace_index", "replace_random",
)  # fmt: skip
LETTERS = "abcdefghijkl"
SHORTEST, LONGEST = 3, 6


@dataclass(frozen=True)
class ListProblem:
    """A list, what is to be done with it, and one right answer."""

    task: str
    """One of `TASKS`."""
    items: tuple[str, ...]
    """The list."""
    answer: tuple[str, ...]
    """A right answer, drawn uniformly from all where there are several."""
    new: str = ""
    """The item that comes in, where one does."""
    index: int = -1
    """Where, counted from 0; -1 where any place is right."""

    def right(self, found: Sequence[str]) -> bool:
        """Tells whether a list is a right answer."""
        items, found = list(self.items), list(found)
        if self.task == "shuffle":
            return found != items and Counter(found) == Counter(items)
        if self.task == "insert_random":
            return any(_without(found, place) == items and item == self.new for place, item in enumerate(found))
        if self.task == "remove_random":
            return any(_without(items, place) == found for place in range(len(items)))
        if self.task == "replace_random":
            return any(_with(items, place, self.new) == found for place in range(len(items)))
        return found == list(self.answer)


def problem(task: str, count: int, draw: random.Random, pool: Sequence[str]) -> ListProblem:
    """Draws a problem.

    Args:
        task: One of `TASKS`.
        count: Items of the list, 2 or more.
        draw: What it is drawn with.
        pool: What items are taken from, each once; more than `count`.
    """
    *drawn, new = draw.sample(list(pool), count + 1)
    kind, _, where = task.partition("_")
    place = draw.randrange(count + (kind == "insert"))
    answer = _answer(kind, drawn, new, place, draw)
    return ListProblem(
        task,
        tuple(drawn),
        tuple(answer),
        new if kind in ("insert", "replace") else "",
        place if where == "index" else -1,
    )


def in_letters(asked: ListProblem) -> str:
    """Returns the question of a problem on letters, such as "sort: dacb" or "insert index: dacb g 2"."""
    parts = ["".join(asked.items), asked.new, str(asked.index) if asked.index >= 0 else ""]
    return f"{asked.task.replace('_', ' ')}: {' '.join(filter(None, parts))}"


def letters(index: int, seed: int | str, tasks: Sequence[str] = TASKS) -> ListProblem:
    """Returns problem number `index` on letters; the tasks take turns."""
    draw = random.Random(f"lists/{seed}/{index}")
    return problem(tasks[index % len(tasks)], draw.randint(SHORTEST, LONGEST), draw, LETTERS)


def make(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns `count` rows with `prompt` and `answer`, the tasks taking turns; several answers may be right."""
    problems = [letters(index, seed) for index in range(count)]
    return [{"prompt": in_letters(each), "answer": "".join(each.answer)} for each in problems]


def _answer(kind: str, items: list[str], new: str, place: int, draw: random.Random) -> list[str]:
    if kind == "reverse":
        return items[::-1]
    if kind == "sort":
        return sorted(items)
    if kind == "shuffle":
        return _shuffled(items, draw)
    if kind == "insert":
        return [*items[:place], new, *items[place:]]
    if kind == "remove":
        return _without(items, place)
    return _with(items, place, new) if kind == "replace" else items


def _shuffled(items: list[str], draw: random.Random) -> list[str]:
    """Returns the items in an order that is not theirs, each as probable."""
    while (shuffled := draw.sample(items, len(items))) == items:
        pass
    return shuffled


def _without(items: Sequence[str], place: int) -> list[str]:
    return [*items[:place], *items[place + 1 :]]


def _with(items: Sequence[str], place: int, new: str) -> list[str]:
    return [*items[:place], new, *items[place + 1 :]]
