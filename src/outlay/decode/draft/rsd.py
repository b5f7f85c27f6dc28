"""Recursive speculative decoding: drafted siblings are drawn without replacement, so that none repeats another.

Variant "c" draws a constant number of children at each level by Gumbel-top-k, variant "s" whole texts by stochastic
beam search, which drops unlikely ones early. Recursive rejection in the order of the draws is lossless: the text is
distributed as the target's own, and at temperature 0 it is greedy's (Jeon et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
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
from outlay.speculation.trees import distinct_tree, draw_distinct, topk_beams, topk_tree, tree_size


@dataclass(frozen=True)
class RSD(SpeculativeMethod):
    """Recursive speculative decoding (Jeon et al. 2024): RSD-C and RSD-S."""

    variant: Literal["c", "s"] = "c"
    """How the tree is drawn: "c", with constant branching factors; "s", by stochastic beam search."""

    branching: tuple[int, ...] = (2, 2, 1)
    """Variant "c": children drawn after each node of level 1, 2, ...; b in the paper."""

    width: int = 3
    """Variant "s": texts that are kept on each level; W in the paper."""

    depth: int = 4
    """Variant "s": levels of the tree; L in the paper."""

    nodes: int | None = None
    """The most nodes of a tree, whatever its shape."""

    about: ClassVar[About] = About(
        name="rsd",
        summary="a drafted tree, siblings drawn without replacement",
        paper="Jeon et al. 2024, https://arxiv.org/abs/2402.14160",
        family="speculation",
        spends="a draft pass a level, and the tree's nodes + 1 positions a target pass",
        takes=("constraint", "cache"),
        saves="target passes, most at low temperatures",
        needs=("draft",),
    )

    def __post_init__(self) -> None:
        if not self.branching or min(self.branching) < 1:
            raise UsageError(f"rsd needs a branching of numbers from 1 on, such as 2x2x1, not {self.branching}")
        for name in ("width", "depth"):
            if getattr(self, name) < 1:
                raise UsageError(f"rsd needs a {name} of 1 or more, not {getattr(self, name)}")
        if self.nodes is not None and self.nodes < 1:
            raise UsageError(f"rsd needs nodes of 1 or more, not {self.nodes}")

    @property
    def limits(self) -> DraftLimits:
        shape = self.width * self.depth if self.variant == "s" else tree_size(self.branching)
        depth = self.depth if self.variant == "s" else len(self.branching)
        return DraftLimits(shape if self.nodes is None else min(shape, self.nodes), depth)

    def draft(self, run: TreeRun, drafter: Drafter, limits: DraftLimits) -> Drafting:
        if self.variant == "s":
            if run.sampler.greedy:
                return topk_beams(drafter, self.width, limits)
            return stochastic_beam_search(run, drafter, self.width, limits)
        if run.sampler.greedy:
            return topk_tree(drafter, self.branching, limits)
        return distinct_tree(run, drafter, self.branching, limits)

    def verify(self, run: TreeRun, tree: DraftTree, attachments: Attachments) -> Verification:
        return verify_tree(run, tree, reject_without_replacement, attachments)


def stochastic_beam_search(run: TreeRun, drafter: Drafter, width: int, limits: DraftLimits) -> Drafting:
    """Draws `width` texts of each length without replacement (Kool et al. 2019; RSD, section 3.2.2).

    Each text has its log-probability phi, and psi: phi with Gumbel noise, such that the largest psi of a text's
    continuations is the text's own. All that are among the `width` largest psi of a level stay in the tree, siblings in
    descending order. Only the `width` largest of each text's continuations are drawn, from the largest down.
    """
    tree = DraftTree()
    beams = [(ROOT, 0.0, 0.0)]  # place, phi, psi
    for _ in range(limits.max_depth):
        probs = yield from drafter.probs(tree, [place for place, _, _ in beams])
        found = []
        for (place, phi, psi), draft_probs in zip(beams, probs, strict=True):
            tree.draft_probs[place] = draft_probs
            generator = run.random.at(run.tip.position, DRAFT_STREAM, place + 1)
            drawn = draw_distinct(draft_probs, width, generator)
            psis = descending_gumbels([phi + math.log(left) for _, left in drawn], psi, generator)
            found += [
                (place, token, phi + math.log(float(draft_probs[token])), below)
                for (token, _), below in zip(drawn, psis, strict=True)
            ]
        found = sorted(found, key=lambda each: -each[3])[:width]
        beams = [(tree.add(place, token, drafter.name), phi, psi) for place, token, phi, psi in found]
    return tree.cut(limits)


def descending_gumbels(locations: Sequence[float], largest: float, generator: torch.Generator) -> list[float]:
    """Draws Gumbels in descending order, the first of which is `largest`.

    Args:
        locations: For each, the log of the probability that is left when those above it are taken out.
        largest: The first one.
        generator: Random numbers.

    Returns:
        Each is the greatest of what is left, conditioned on that it is below the one before (Kool et al. 2019,
        appendix B.3).
    """
    noise = -torch.log1p(-torch.rand(len(locations), generator=generator, dtype=torch.float64))
    values = [largest]
    for location, exponential in zip(locations[1:], noise.clamp_(min=1e-300).tolist()[1:], strict=True):
        values.append(-float(np.logaddexp(-values[-1], math.log(exponential) - location)))
    return values[: len(locations)]


def reject_without_replacement(
    target_probs: Tensor, draft_probs: Tensor | None, drafted: Sequence[int], generator: torch.Generator
) -> int:
    """Recursive rejection of tokens that were drawn from `draft_probs` one after the other, none twice (section 3.1).

    After each rejection the token leaves p, and q becomes its residual distribution. The returned token is distributed
    as `target_probs` (Theorem 3.1). Draws are in float64.
    """
    if not drafted:
        return draw(target_probs, generator)
    assert draft_probs is not None, "drawn tokens have a distribution"
    q, p = target_probs.double(), draft_probs.double()  # not scaled to add up to 1: their totals stand beside them
    q_total, p_total = 1.0, 1.0
    for token in drafted:
        if uniform(generator) * float(p[token]) * q_total < float(q[token]) * p_total:
            return token
        residual = q.sub(p, alpha=q_total / p_total).clamp_(min=0)
        total = float(residual.sum())
        if total <= 0:  # equal up to rounding
            return token
        q, q_total = residual, total
        p_total -= float(p[token])
        p[token] = 0
        if p_total <= 1e-9:  # nothing but rounding is left that a further token could have been drawn from
            break
    return draw(q, generator)
