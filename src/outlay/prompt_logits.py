"""The logits at positions of a given text: what a comparison of two models, or of a draft and its target, needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outlay.decode.greedy import Greedy
from outlay.engine.method import Method, Work
from outlay.engine.tree_run import TreeRun
from outlay.lm import LM

BLOCK = 256  # positions whose logits are asked for at once


class PromptLogits(Method):
    """Computes the logits after some tokens of the prompt, in wide passes; writes nothing."""

    about = Greedy.about

    def __init__(self, positions: Sequence[int]) -> None:
        self.positions = positions
        self._blocks: list[Tensor] = []

    @property
    def logits(self) -> Tensor:
        """The logits once the run has ended, float32 [positions, vocab]."""
        return torch.cat(self._blocks)

    def decode(self, run: TreeRun) -> Work:
        """Asks for a block of positions at a time; all other positions need no logits and are computed first."""
        path = run.tip.path()
        nodes = [path[position] for position in self.positions]
        for start in range(0, len(nodes), BLOCK):
            self._blocks.append((yield run.target.forward(nodes[start : start + BLOCK])))


def logits_from(lm: LM, tokens: Sequence[int], first: int) -> Tensor:
    """Returns the logits after each of n tokens from index `first` on: float32 [n - first, vocab]."""
    method = PromptLogits(range(first, len(tokens)))
    lm.submit(tokens, method=method, max_tokens=1).result()
    return method.logits
