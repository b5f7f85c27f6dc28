"""Rates given texts by a scorer, and writes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from outlay.engine.method import About, Method, Work
from outlay.engine.tree_run import TreeRun
from outlay.lm import LM


class Rate(Method):
    """Asks a scorer about texts. It is for programs, so the catalogue does not list it.

    Attributes:
        texts: The texts, as tokens of the target model.
        step: The text that ends a step.
        rewards: One for each text, once the run has ended.
    """

    about: ClassVar[About] = About(
        name="rate",
        summary="the rewards of given texts",
        paper="",
        family="scoring",
        spends="a score for each text",
        saves="nothing",
        needs=("scorer",),
    )

    def __init__(self, texts: Sequence[Sequence[int]], step: str) -> None:
        self.texts, self.step = texts, step
        self.rewards: list[float] = []

    def decode(self, run: TreeRun) -> Work:
        """Spells the texts below the prompt, and has them rated."""
        scorer = run.submission.scorer.begin(run, self.step)
        ends = [run.tree.extend([run.tip, *range(len(tokens) - 1)], list(tokens), "rated")[-1] for tokens in self.texts]
        self.rewards = yield from scorer.rewards(ends)


def rewards_of(lm: LM, prompt: str, texts: Sequence[Sequence[int]], scorer: Any, step: str) -> list[float]:
    """Returns the rewards of texts, given as tokens of `lm`, after a prompt."""
    rate = Rate(texts, step)
    lm.generate(prompt, method=rate, scorer=scorer, max_tokens=1)
    return rate.rewards
