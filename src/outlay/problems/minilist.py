"""MiniList: small programs that turn one list into another, to be found from three examples of what they do.

A program is stages with bars between them, such as "map + 3 | filter even | sort". Numbers are taken modulo 100. The
examples of the prompt are public, and may be run by whoever searches; five more are private, and tell whether a program
is right.
"""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

SUMMARY = "programs on lists, such as map + 3 | filter even | sort, from three examples of what they do"
LENGTHS = (2, 5)  # stages of a program
ITEMS = (4, 6)  # numbers of an input
LARGEST_INPUT = 12
MODULUS = 100
PUBLIC, PRIVATE = 3, 5  # examples
ARROW, BAR = " -> ", " | "

List = tuple[int, ...]
Example = tuple[List, List]

Stage = Callable[[Sequence[int]], Sequence[int]]


def _map(change: Callable[[int], int]) -> Stage:
    return lambda items: [change(item) % MODULUS for item in items]


def _filter(wanted: Callable[[int], bool]) -> Stage:
    return lambda items: [item for item in items if wanted(item)]


def _scan(joined: Callable[[int, int], int]) -> Stage:
    return lambda items: [item % MODULUS for item in itertools.accumulate(items, joined)]


STAGES: dict[str, Stage] = {
    **{f"map + {by}": _map(partial(operator.add, by)) for by in range(1, 6)},
    **{f"map * {by}": _map(partial(operator.mul, by)) for by in (2, 3)},
    "filter even": _filter(lambda item: item % 2 == 0),
    "filter odd": _filter(lambda item: item % 2 == 1),
    **{f"filter > {bound}": _filter(partial(operator.lt, bound)) for bound in range(2, 7)},
    "sort": sorted,
    "reverse": operator.itemgetter(slice(None, None, -1)),
    "unique": lambda items: list(dict.fromkeys(items)),
    **{f"take {count}": operator.itemgetter(slice(count)) for count in (2, 3, 4)},
    **{f"drop {count}": operator.itemgetter(slice(count, None)) for count in (1, 2, 3)},
    "scan sum": _scan(operator.add),
    "scan max": _scan(max),
    "scan min": _scan(min),
}
"""What each stage does to a list."""


def run(program: str, items: Sequence[int]) -> List | None:
    """Returns what a program makes of a list; None where it is no program."""
    for name in program.split(BAR):
        stage = STAGES.get(name.strip())
        if stage is None:
            return None
        items = stage(items)
    return tuple(items)


def pass_rate(program: str, examples: Sequence[Example]) -> float:
    """Returns the share of examples on which a program does what they show."""
    return sum(run(program, items) == made for items, made in examples) / len(examples)


def examples_of(prompt: str) -> list[Example]:
    """Returns the examples that a prompt shows. Raises `ValueError` for a line that is none."""
    found = []
    for line in prompt.strip().splitlines():
        items, made = line.split(ARROW.rstrip())
        found.append((tuple(map(int, items.split())), tuple(map(int, made.split()))))
    return found


def score(prompt: str, texts: Sequence[str]) -> list[float]:
    """Returns the pass rate of each text on the public examples: this file is a scorer, `python:FILE`."""
    examples = examples_of(prompt)
    return [pass_rate(text, examples) for text in texts]


quick = True  # `score` takes microseconds


def make(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns `count` rows with `prompt`, `answer` (a program that fits), and `private`, the examples not shown."""
    return [problem(random.Random(f"minilist/{seed}/{index}")) for index in range(count)]


def problem(draw: random.Random) -> dict[str, Any]:
    """Draws a program that does something to each of three inputs, and shows it by them."""
    while True:
        program = BAR.join(draw.choice(list(STAGES)) for _ in range(draw.randint(*LENGTHS)))
        inputs = [_input(draw) for _ in range(PUBLIC + PRIVATE)]
        shown = [(items, run(program, items) or ()) for items in inputs]
        public = shown[:PUBLIC]
        if all(made and made != items for items, made in public) and len({made for _, made in public}) == PUBLIC:
            return {"prompt": "\n".join(map(_line, public)), "answer": program, "private": shown[PUBLIC:]}


def _input(draw: random.Random) -> List:
    return tuple(draw.randint(0, LARGEST_INPUT) for _ in range(draw.randint(*ITEMS)))


def _line(example: Example) -> str:
    items, made = example
    return " ".join(map(str, items)) + ARROW + " ".join(map(str, made))
