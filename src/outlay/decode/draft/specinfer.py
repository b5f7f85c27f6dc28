"""Speculative decoding with a draft model: a drafted chain (`speculative`) or tree (`specinfer`), accepted by
rejection.

The draft model's tokens are accepted with probability min(1, q/p) of the target's probability q and the draft's p;
after a rejection the next sibling is tried against the residual distribution (Leviathan et al. 2023 for a chain; Miao
et al. 2024 for a tree with independently drawn siblings). Lossless: the text is distributed as the target's own, and at
temperature 0 it is greedy's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outlay.engine.method import About
from outlay.engine.random import uniform
from outlay.engine.sampling import draw
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.speculation.rounds import (
    DRAFT_STREAM,
    ROOT,
    Attachments,
    Drafter,
    Drafting,
    DraftLimits,
    DraftTree,
    SpeculativeMethod,
    Verification,
    verify_tree,
)
from outlay.speculation.trees import topk_tree, tree_size


class IndependentDrafts(SpeculativeMethod):
    """What both methods do: siblings are drawn independently, and accepted by recursive rejection."""

    @property
    @abstractmethod
    def levels(self) -> tuple[int, ...]:
        """How many children are drawn after each node of level 1, 2, ..."""

    @property
    def limits(self) -> DraftLimits:
        return DraftLimits(tree_size(self.levels), len(self.levels))

    def draft(self, run: TreeRun, drafter: Drafter, limits: DraftLimits) -> Drafting:
        if run.sampler.greedy:
            return topk_tree(drafter, self.levels, limits)
        return independent_tree(run, drafter, self.levels, limits)

    def verify(self, run: TreeRun, tree: DraftTree, attachments: Attachments) -> Verification:
        return verify_tree(run, tree, reject_with_replacement, attachments)


@dataclass(frozen=True)
class Speculative(IndependentDrafts):
    """A drafted chain (Leviathan et al. 2023, algorithm 1): SpecInfer with a branching of 1."""

    depth: int = 4
    """Tokens that are drafted in a round; gamma in the paper."""

    about: ClassVar[About] = About(
        name="speculative",
        summary="a drafted chain, accepted as far as the target agrees",
        paper="Leviathan et al. 2023, https://arxiv.org/abs/2211.17192",
        family="speculation",
        spends="`depth` draft passes, and `depth` + 1 positions a target pass",
        takes=("constraint", "cache"),
        saves="target passes",
        needs=("draft",),
    )

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UsageError(f"speculative needs a depth of 1 or more, not {self.depth}")

    @property
    def levels(self) -> tuple[int, ...]:
        return (1,) * self.depth


@dataclass(frozen=True)
class SpecInfer(IndependentDrafts):
    """A drafted tree whose siblings are drawn independently (Miao et al. 2024, algorithm 2)."""

    branching: tuple[int, ...] = (2, 2, 1)
    """Children that are drawn after each node of level 1, 2, ..."""

    about: ClassVar[About] = About(
        name="specinfer",
        summary="a drafted tree, siblings drawn independently",
        paper="Miao et al. 2024, https://arxiv.org/abs/2305.09781",
        family="speculation",
        spends="a draft pass a level, and the tree's nodes + 1 positions a target pass",
        takes=("constraint", "cache"),
        saves="target passes",
        needs=("draft",),
    )

    def __post_init__(self) -> None:
        if not self.branching or min(self.branching) < 1:
            raise UsageError(f"specinfer needs a branching of numbers from 1 on, such as 2x2x1, not {self.branching}")

    @property
    def levels(self) -> tuple[int, ...]:
        return self.branching


def independent_tree(run: TreeRun, drafter: Drafter, branching: Sequence[int], limits: DraftLimits) -> Drafting:
    """Draws `branching[l]` tokens after each node of level l, independently.

    A token that was drawn several times is one node with copies, and gets the children of one.
    """
    tree, level = DraftTree(), [ROOT]
    for width in affordable(branching[: limits.max_depth], limits.max_nodes):
        probs = yield from drafter.probs(tree, level)
        grown: dict[int, None] = {}
        for place, draft_probs in zip(level, probs, strict=True):
            tree.draft_probs[place] = draft_probs
            generator = run.random.at(run.tip.position, DRAFT_STREAM, place + 1)
            grown |= dict.fromkeys(tree.add(place, draw(draft_probs, generator), drafter.name) for _ in range(width))
        level = list(grown)
    return tree


def affordable(branching: Sequence[int], nodes: int) -> list[int]:
    """Returns the levels of a tree that has at most `nodes` nodes, whatever is drawn.

    Independent draws may not be left out by what they turned out to be: that would change their distribution.
    """
    levels = [min(branching[0], nodes)] if branching and nodes else []
    for width in branching[1:]:
        if tree_size([*levels, width]) > nodes:
            break
        levels.append(width)
    return levels


def reject_with_replacement(
    target_probs: Tensor, draft_probs: Tensor | None, drafted: Sequence[int], generator: torch.Generator
) -> int:
    """Recursive rejection of tokens that were drawn from `draft_probs` independently (Miao et al. 2024, algorithm 2).

    With one token it is speculative sampling (Leviathan et al. 2023, algorithm 1). The returned token is distributed as
    `target_probs`. Draws are in float64.
    """
    if not drafted:
        return draw(target_probs, generator)
    assert draft_probs is not None, "drawn tokens have a distribution"
    q, p, total = target_probs.double(), draft_probs.double(), 1.0  # q is not scaled to add up to 1: it has its total
    for token in drafted:
        if uniform(generator) * float(p[token]) * total < float(q[token]):
            return token
        residual = q.sub(p, alpha=total).clamp_(min=0)
        left = float(residual.sum())
        if left <= 0:  # equal up to rounding
            return token
        q, total = residual, left
    return draw(q, generator)
