"""The closed forms against exact denoisers: many lists decoded at once, with the marginals of the engine's models.

Noise in the logits breaks ties, as the theory supposes: without it the first of equally probable items would win.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, Protocol

import numpy as np

from outlay.bench.parallel import theory
from outlay.diffuse.exact.denoiser import IDS, MASK, NEW, ids
from outlay.diffuse.exact.lists import Copy, ExactList, Permutation, ReplaceOne, Reverse
from outlay.diffuse.proposals import Chosen, Floats, Integers
from outlay.progress import ShowProgress

NOISE = 1e-6  # standard deviation
DENOISERS: dict[str, ExactList] = {
    "copy": Copy(), "reverse": Reverse(), "shuffle": Permutation(), "replace_random": ReplaceOne()
}  # fmt: skip
ITEMS = "abcdefghij"


class Rule(Protocol):
    """Chooses what a round fills of many lists at once."""

    def select(self, confidence: Floats, masked: Chosen, draw: np.random.Generator) -> Chosen:
        """Returns what is filled, bool [lists, n].

        Args:
            confidence: The probability of each proposed token, [lists, n].
            masked: What can be filled, [lists, n].
            draw: For random choices.
        """


@dataclass(frozen=True)
class TopK:
    """Fills the k masked places of highest confidence, or k random ones."""

    k: int
    """Tokens of a round."""
    random: bool = False
    """Whether places are chosen at random."""

    def __str__(self) -> str:
        return f"{self.k} a round, {'at random' if self.random else 'by confidence'}"

    def select(self, confidence: Floats, masked: Chosen, draw: np.random.Generator) -> Chosen:
        """As `Rule`."""
        scores = draw.random(confidence.shape) if self.random else confidence
        order = np.where(masked, -scores, inf).argsort(1, kind="stable")
        return (order.argsort(1) < self.k) & masked


@dataclass(frozen=True)
class AtLeast:
    """Fills what is at least as confident as a threshold, and always the best place."""

    gamma: float
    """The threshold."""

    def __str__(self) -> str:
        return f"threshold {self.gamma}"

    def select(self, confidence: Floats, masked: Chosen, draw: np.random.Generator) -> Chosen:
        """As `Rule`."""
        return (masked & (confidence >= self.gamma)) | TopK(1).select(confidence, masked, draw)


@dataclass(frozen=True)
class Cell:
    """One closed form and how it is tested."""

    task: str
    """The task."""
    n: int
    """Items of the list."""
    rule: TopK | AtLeast
    """What a round fills."""
    sampled: bool
    """Whether tokens are drawn at temperature 1."""

    @property
    def expected(self) -> float:
        """The share of right answers in closed form."""
        if isinstance(self.rule, AtLeast):
            return theory.threshold_accuracy(self.task, self.n, self.rule.gamma)
        return theory.accuracy(self.task, self.n, self.rule.k, sampled=self.sampled)


def cells() -> list[Cell]:
    """Returns the 40 closed forms that are tested."""
    return [
        *(Cell(task, 6, TopK(6), sampled=False) for task in ("copy", "reverse")),
        *_shuffles(),
        *(Cell("replace_random", n, TopK(k), sampled=False) for n, k in ((6, 1), (4, 2), (6, 2), (6, 3))),
        *(Cell("replace_random", n, TopK(n), sampled=True) for n in (3, 4, 5, 6)),
        *(Cell("replace_random", 6, TopK(k, random=True), sampled=True) for k in (2, 3)),
        Cell("shuffle", 6, AtLeast(0.6), sampled=False),
        *(Cell("replace_random", n, AtLeast(g), sampled=False) for n, g in ((4, 0.7), (4, 0.8), (6, 0.9))),
    ]


def _shuffles() -> Iterator[Cell]:
    for n, k in ((3, 3), (4, 1), (4, 2), (4, 4), (5, 2), (6, 2), (6, 3), (6, 6)):
        yield Cell("shuffle", n, TopK(k, random=True), sampled=True)
        yield Cell("shuffle", n, TopK(k), sampled=True)
        yield Cell("shuffle", n, TopK(k), sampled=False)


def decoded(cell: Cell, lists: int, draw: np.random.Generator) -> tuple[Integers, int]:
    """Decodes many answers of one list.

    Args:
        cell: The task, and how it is decoded.
        lists: How many.
        draw: What everything random is drawn with.

    Returns:
        The answers, [lists, n], and the rounds of the one that took most.
    """
    items, denoiser = ids(ITEMS[: cell.n]), DENOISERS[cell.task]
    known = np.array([*items, IDS[NEW]])
    answers = np.full((lists, cell.n), MASK)
    rounds = 0
    while (masked := answers == MASK).any():
        with np.errstate(divide="ignore"):
            logits = np.log(denoiser.item_probs(items, answers)[..., known])
        logits += NOISE * draw.standard_normal(logits.shape)
        best = (logits + draw.gumbel(size=logits.shape) if cell.sampled else logits).argmax(-1)
        confidence = np.exp(np.take_along_axis(logits, best[..., None], -1)[..., 0])
        answers = np.where(masked & cell.rule.select(confidence, masked, draw), known[best], answers)
        rounds += 1
    return answers, rounds


def right(task: str, items: Integers, answers: Integers) -> Chosen:
    """Tells which answers are possible, [lists]; a shuffle may be the identity."""
    if task == "shuffle":
        return np.asarray((np.sort(answers, 1) == np.sort(items)).all(1))
    if task == "replace_random":
        replaced = answers == IDS[NEW]
        return np.asarray((replaced.sum(1) == 1) & ((answers == items) | replaced).all(1))
    return np.asarray((answers == (items[::-1] if task == "reverse" else items)).all(1))


def measured(lists: int, seed: int, progress: ShowProgress) -> list[dict[str, Any]]:
    """Returns a row for each cell: the closed form, the share that was found, and how many standard errors lie between.

    Args:
        lists: Answers of each cell.
        seed: Seed of all draws.
        progress: Is told how far the work is.
    """
    rows = []
    for number, cell in enumerate(cells()):
        progress("closed forms", number, len(cells()))
        answers, rounds = decoded(cell, lists, np.random.default_rng([seed, number]))
        found = float(right(cell.task, ids(ITEMS[: cell.n]), answers).mean())
        rows.append(
            {
                "task": cell.task, "n": cell.n, "rule": str(cell.rule), "temperature": int(cell.sampled),
                "rounds": rounds, "expected": cell.expected, "found": found,
                "z": _z(found, cell.expected, lists),
            }
        )  # fmt: skip
    return rows


def _z(found: float, expected: float, lists: int) -> float | None:
    """Returns the distance in standard errors; None where any distance would be infinitely many."""
    if found == expected:
        return 0.0
    error = sqrt(expected * (1 - expected) / lists)
    return (found - expected) / error if error > 1e-12 else None
