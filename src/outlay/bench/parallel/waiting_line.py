"""The list tasks: people in a line, with one example, and letters, for models that are trained on them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import partial

from outlay.bench.parallel.samples import Sample, Task, one_shot
from outlay.problems import lists
from outlay.problems.lists import ListProblem

FIRST = """
    Ada Alan Amara Anton Beatriz Bela Bruno Carla Cesar Chen Clara Dana Diego Dora Edgar Elif Emil Esther Farid
    Fiona Frida Georg Gita Hana Hugo Ida Igor Ines Ivan Jana Jonas Judit Kamal Kira Lars Leila Luca Maja Marco Mei
    Mina Nadia Nils Noor Olga Omar Paula Petra Rafael Rosa Samir Sara Sofia Tariq Tessa Uma Vera Viktor Yara Zoe
"""
LAST = """
    Abbott Adler Baker Bauer Becker Bell Blum Brandt Carter Castro Costa Dahl Diaz Duarte Ekman Ellis Engel Farkas
    Fischer Garcia Gomez Grant Haas Hansen Horvat Ito Jansen Kaya Keller Kim Kovacs Lang Lehmann Lopez Maier Marsh
    Mendez Molina Moreau Nagy Novak Okafor Olsen Ortiz Park Perez Quinn Rao Reyes Rossi Santos Sato Silva Stone
    Tanaka Turner Vidal Wagner Weber Young
"""
STORIES = {
    "copy": "The line has not moved. Write it down as it is.",
    "reverse": "The clerk now serves the line from its end. Write the line in reverse order.",
    "sort": "The clerk calls people by their names. Write the line in alphabetical order.",
    "shuffle": "Everyone has left the line and come back in no order. Write the line in a random order, which must not "
               "be the one above.",
    "insert_index": "{new} joins the line and now stands at index {index}, counted from 0. Write the new line.",
    "insert_random": "{new} joins the line at a place of your choice. Write the new line.",
    "remove_index": "The person at index {index}, counted from 0, goes home. Write the new line.",
    "remove_random": "One person, of your choice, goes home. Write the new line.",
    "replace_index": "{new} takes the place of the person at index {index}, counted from 0. Write the new line.",
    "replace_random": "{new} takes the place of one person of your choice. Write the new line.",
}  # fmt: skip
LETTERS_CANVAS = 8


def tasks() -> list[Task]:
    """Returns the ten tasks with people, and the ten with letters."""
    return [
        *(Task(f"waiting_line/{task}", 32, partial(_draw, task, True)) for task in lists.TASKS),
        *(Task(f"letters/{task}", LETTERS_CANVAS, partial(_draw, task, False)) for task in lists.TASKS),
    ]


def _draw(task: str, people: bool, count: int, items: tuple[int, int], seed: int) -> list[Sample]:
    draw = random.Random(f"parallel/{task}/{people}/{seed}")
    low, high = items
    lengths = [low + number % (high - low + 1) for number in range(count)]
    if not people:
        return [_in_letters(lists.problem(task, n, draw, lists.LETTERS)) for n in lengths]
    pool = [f"{first} {last}" for first in FIRST.split() for last in LAST.split()]
    example = lists.problem(task, low, draw, pool)
    return [_of_people(example, lists.problem(task, n, draw, pool)) for n in lengths]


def _in_letters(asked: ListProblem) -> Sample:
    def score(text: str, strict: bool) -> float:
        return float(asked.right(text if strict else text.strip()))

    return Sample(lists.in_letters(asked), "".join(asked.answer), score)


def _of_people(example: ListProblem, asked: ListProblem) -> Sample:
    def score(text: str, strict: bool) -> float:
        names = names_of(text)
        if strict and text.strip() != written(names):
            return 0.0
        return float(asked.right(names))

    return Sample(one_shot(question(example), written(example.answer), question(asked)), written(asked.answer), score)


def question(asked: ListProblem) -> str:
    """Returns the question of a problem on people."""
    story = STORIES[asked.task].format(new=asked.new, index=asked.index)
    return f"These people wait at a counter: {written(asked.items)}\n{story} Give only the list, in the same form."


def written(names: Sequence[str]) -> str:
    """Returns a list as it stands in questions and answers."""
    return json.dumps(list(names), ensure_ascii=False)


def names_of(text: str) -> list[str]:
    """Returns the items of the last list in a text, without quotes and spaces around them; none without a list."""
    _, opened, rest = text.rpartition("[")
    inside, closed, _ = rest.partition("]")
    if not opened or not closed:
        return []
    return [name.strip().strip("\"'").strip() for name in inside.split(",") if name.strip()]
