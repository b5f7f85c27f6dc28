"""Beam search over steps with a scorer, and diverse verifier tree search (Beeching et al. 2024, HuggingFace).

Beam search: of n steps drawn after the n / width best beginnings, the n / width with the highest rewards go on. DVTS
runs n / width beginnings apart from each other, and each goes on with the best of its own `width` steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from outlay.engine.method import About, Work
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.search.steps import COUNTS, Leaf, StepSearch

Rated = tuple[float, Leaf]


@dataclass(frozen=True)
class StepBeam(StepSearch):
    """Of n steps drawn after each round, those with the highest rewards go on."""

    n: int = 16
    """Steps that are drawn and rated a round."""
    width: int = 4
    """Steps that are drawn after each beginning; n / width beginnings go on."""
    dvts: bool = False
    """Whether each beginning is kept apart and goes on with its own best step."""

    about: ClassVar[About] = About(
        name="step_beam",
        summary="the best n / width of n drawn steps go on, by their rewards",
        paper="",
        family="search",
        spends="n positions a pass and n scores a step",
        saves="samples, against best of n at the same accuracy",
        needs=("scorer",),
        exact=False,
        counts=COUNTS,
        texts=("step",),
    )

    def __post_init__(self) -> None:
        self.refuse_below_one("n", "width")
        if self.n % self.width:
            raise UsageError(f"n of step_beam must be a multiple of its width {self.width}, not {self.n}")

    @property
    def at_a_time(self) -> int:
        return self.n

    def decode(self, run: TreeRun) -> Work:
        steps, scorer = self.begin(run)
        finished: list[Rated] = []
        families = [steps.branch(steps.root, self.width) for _ in range(self.n // self.width)]
        while families:
            drawn = [leaf for family in families for leaf in family]
            yield from steps.grow(drawn)
            rewards = yield from scorer.rewards([leaf.tip for leaf in drawn])
            run.count(rounds=1)
            for leaf, reward in zip(drawn, rewards, strict=True):
                run.mark(leaf.tip, score=reward, round=run.ledger.rounds)
            going_on = self._best(families, list(zip(rewards, drawn, strict=True)))
            finished += [rated for rated in going_on if rated[1].ended]
            run.offer(best(finished or going_on).tip)
            families = [steps.branch(leaf, self.width) for _, leaf in going_on if not leaf.ended]
            kept = {id(leaf) for _, leaf in finished}
            going = {id(leaf) for _, leaf in going_on}
            for leaf in drawn:
                if id(leaf) not in going:
                    run.mark(leaf.tip, cut="other steps have higher rewards")
                if id(leaf) not in kept:
                    leaf.release()
        text = best(finished)
        run.mark(text.tip, chosen="the highest reward")
        run.accept(text.tip)

    def _best(self, families: Sequence[Sequence[Leaf]], rated: Sequence[Rated]) -> list[Rated]:
        """Returns the beginnings that go on: the best of each family, or as many of all of them together."""
        if not self.dvts:
            return sorted(rated, key=lambda each: -each[0])[: len(families)]
        best_of_each = []
        for place in range(0, len(rated), self.width):
            best_of_each.append(max(rated[place : place + self.width], key=lambda each: each[0]))
        return best_of_each


def best(rated: Sequence[Rated]) -> Leaf:
    """Returns the text with the highest reward, the first among equals."""
    return max(rated, key=lambda each: each[0])[1]
