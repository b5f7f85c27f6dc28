"""Chains of arithmetic, to be worked out a step a line: every step can be checked, and the answer is one number."""

from __future__ import annotations

import random
from typing import Any

SUMMARY = "chains of 3 to 5 (operations=3-5) additions, subtractions and multiplications, with steps and answer"
LARGEST = 99  # no result is greater, and none is below 0


def make(count: int, seed: int, operations: tuple[int, int] = (3, 5)) -> list[dict[str, Any]]:
    """Returns `count` rows with `prompt`, `answer` and `steps`, the lines of a solution such as "7 + 5 = 12".

    Args:
        count: Rows.
        seed: Seed of the rows.
        operations: The fewest and the most operations of a chain.
    """
    return [_chain(random.Random(f"{seed}/{index}"), operations) for index in range(count)]


def _chain(draw: random.Random, operations: tuple[int, int]) -> dict[str, Any]:
    value = draw.randint(1, 20)
    told, steps = [f"Start with {value}."], []
    for _ in range(draw.randint(*operations)):
        word, sign, amount = draw.choice(_possible(value))
        result = {"+": value + amount, "-": value - amount, "*": value * amount}[sign]
        told.append(f"{word} {amount}.")
        steps.append(f"{value} {sign} {amount} = {result}")
        value = result
    ask = "Work it out one step a line, and write the result as the last number."
    return {"prompt": " ".join([*told, ask]), "answer": str(value), "steps": steps}


def _possible(value: int) -> list[tuple[str, str, int]]:
    """Returns what can be done to `value` without leaving the range: the words for it, its sign, its amount."""
    operations = [("Add", "+", amount) for amount in range(1, min(20, LARGEST - value) + 1)]
    operations += [("Subtract", "-", amount) for amount in range(1, min(20, value) + 1)]
    operations += [("Multiply by", "*", amount) for amount in (2, 3, 4) * 4 if value * amount <= LARGEST]
    return operations
