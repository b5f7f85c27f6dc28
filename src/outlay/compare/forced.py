"""Teacher forcing: how probable a given text is, and which of some tokens comes next.

Both are methods like any other, so that the engine batches them; neither writes a text of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from outlay.engine.handle import Result
from outlay.engine.method import About, Method, Work
from outlay.engine.tree_run import TreeRun
from outlay.lm import LM
from outlay.score import Score

TOGETHER = 16  # runs


@dataclass(frozen=True)
class _Choice(Method):
    """Counts `mean`, the expected index of the next token among `choices`, given that it is one of them."""

    choices: tuple[int, ...]

    about: ClassVar[About] = About(
        name="choice",
        summary="which of some tokens comes next",
        paper="",
        family="score",
        spends="a pass over the prompt",
        saves="",
    )

    def decode(self, run: TreeRun) -> Work:
        logits = yield run.target.forward([run.tip])
        probs = logits[0, list(self.choices)].double().softmax(-1)
        run.count(mean=float(probs @ torch.arange(len(self.choices), dtype=torch.float64)))


def logprobs(lm: LM, prompts: Sequence[list[int]], texts: Sequence[Sequence[int]]) -> list[float]:
    """Returns the log-probability of each text after its prompt, natural logarithm.

    Args:
        lm: the model.
        prompts: token ids of each prompt.
        texts: token ids of each text, at least one.
    """
    methods = [Score([text]) for text in texts]
    _run(lm, prompts, methods)
    return [method.likelihoods[0].logprob for method in methods]


def expected_choices(lm: LM, prompts: Sequence[list[int]], choices: Sequence[int]) -> list[float]:
    """Returns the expected index, from 0, of each prompt's next token among `choices`.

    Args:
        lm: the model, whose distribution over the choices gives the expectation.
        prompts: token ids of each prompt.
        choices: token ids.
    """
    return [result.ledger.extras["mean"] for result in _run(lm, prompts, [_Choice(tuple(choices)) for _ in prompts])]


def _run(lm: LM, prompts: Sequence[list[int]], methods: Sequence[Method]) -> list[Result]:
    results = []
    for start in range(0, len(prompts), TOGETHER):
        batch = list(zip(prompts, methods, strict=True))[start : start + TOGETHER]
        with lm.engine.together():
            handles = [lm.submit(prompt, method=method) for prompt, method in batch]
        results += [handle.result() for handle in handles]
    return results
