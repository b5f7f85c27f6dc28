"""Traversal verification: a drafted tree is verified from its leaves to its root, so that whole texts are accepted.

A leaf is accepted with the probability of its whole path, capped at 1 on the way down; when it is rejected, its parent
goes on with its residual distribution, its next child, or at last itself. Nothing that a later token makes up for is
lost, so longer texts are accepted than from the root down (Weng et al. 2025; for a chain it is block verification, Sun
et al. 2024). Lossless: the text is distributed as the target's own, and at temperature 0 it is greedy's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    ROOT,
    Attachments,
    Drafter,
    Drafting,
    DraftLimits,
    DraftTree,
    SpeculativeMethod,
    Verification,
    sample_and_match,
    verify_by_path,
    verify_tree,
)
from outlay.speculation.trees import distinct_tree, topk_tree, tree_size
from outlay.tree.token_tree import Node

Accepted = tuple[list[int], int]  # the accepted path, and the token after it


@dataclass(frozen=True)
class Traversal(SpeculativeMethod):
    """Traversal verification of a tree whose siblings are drawn without replacement (Weng et al. 2025, algorithm 2)."""

    branching: tuple[int, ...] = (2, 2, 1)
    """Children that are drawn after each node of level 1, 2, ...; 1x1x1x1 is block verification of a chain."""

    about: ClassVar[About] = About(
        name="traversal",
        summary="a drafted tree, verified from its leaves to its root",
        paper="Weng et al. 2025, https://arxiv.org/abs/2505.12398",
        family="speculation",
        spends="a draft pass a level, and the tree's nodes + 1 positions a target pass",
        takes=("constraint", "cache"),
        saves="target passes, a few percent more than rsd with the same trees at temperature 1",
        needs=("draft",),
    )

    def __post_init__(self) -> None:
        if not self.branching or min(self.branching) < 1:
            raise UsageError(f"traversal needs a branching of numbers from 1 on, such as 2x2x1, not {self.branching}")

    @property
    def limits(self) -> DraftLimits:
        return DraftLimits(tree_size(self.branching), len(self.branching))

    def draft(self, run: TreeRun, drafter: Drafter, limits: DraftLimits) -> Drafting:
        if run.sampler.greedy:
            return topk_tree(drafter, self.branching, limits)
        return distinct_tree(run, drafter, self.branching, limits)

    def verify(self, run: TreeRun, tree: DraftTree, attachments: Attachments) -> Verification:
        if run.sampler.greedy or not tree.draft_probs:  # chosen tokens are matched
            return verify_tree(run, tree, sample_and_match, attachments)

        def rule(nodes: Sequence[Node], logits: Tensor) -> Accepted:
            generator = run.random.at(run.tip.position)
            return traverse(tree, lambda at: run.sampler.probs(logits[at + 1], nodes[at + 1]), generator)

        return verify_by_path(run, tree, rule, attachments)


def traverse(tree: DraftTree, target_probs: Callable[[int], Tensor], generator: torch.Generator) -> Accepted:
    """Accepts a path of a tree whose siblings were drawn without replacement, and draws the token after it.

    The text is distributed as the target's own (Theorem 3.1). Draws are in float64.

    Args:
        tree: The drafted tree.
        target_probs: Gives the target's distribution [vocab] after a node, or after `ROOT`.
        generator: Random numbers.
    """

    def visit(at: int, p: float) -> Accepted | None:
        """Accepts a path that ends at or below a node, or rejects it; `p` is its acceptance probability."""
        q = target_probs(at).double()
        children = tree.children(at)
        s = tree.draft_probs[at].double() if children else q
        for child in children:
            token = tree.tokens[child]
            below = visit(child, min(1.0, p * float(q[token]) / float(s[token])))
            if below is not None:
                return [child, *below[0]], below[1]
            residual = (p * q - s).clamp_(min=0)
            total = float(residual.sum())
            if total > 0:
                q = residual / total
            rejected = 1 - p
            p = total / (total + rejected) if total + rejected > 0 else 1.0
            s = s.clone()
            s[token] = 0
            s /= s.sum().clamp_min(1e-300)
        if uniform(generator) < p:
            return [], draw(q, generator)
        return None

    accepted = visit(ROOT, 1.0)
    assert accepted is not None, "the root is accepted with probability 1"
    return accepted
