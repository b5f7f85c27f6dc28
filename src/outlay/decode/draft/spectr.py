"""SpecTr: several independent drafts, and K-SEQ, which accepts one of them nearly as often as any exact rule can.

`drafts` texts are drawn from the draft model; at each position the tokens of those that agree with the text so far are
candidates, of which K-SEQ accepts one with at least 1 - 1/e of the optimal probability (Sun et al. 2023). Lossless: the
text is distributed as the target's own, and at temperature 0 it is greedy's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

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
from outlay.speculation.trees import topk_beams

BISECTIONS = 40  # of the interval [1, k] in which rho* lies: to 1e-12


@dataclass(frozen=True)
class SpecTr(SpeculativeMethod):
    """Draft selection by optimal transport, as K-SEQ approximates it (Sun et al. 2023, algorithms 2 and 3)."""

    drafts: int = 4
    """Texts that are drawn in a round; K in the paper."""

    depth: int = 4
    """Tokens of each of them; L in the paper."""

    rho: float | Literal["star", "k"] = "star"
    """K-SEQ's rho: "star", the least that is valid, which accepts most; "k", the number of candidates, which takes no
    search; or a number, used where it is not below the least."""

    about: ClassVar[About] = About(
        name="spectr",
        summary="several drafted texts, tokens accepted among them by K-SEQ",
        paper="Sun et al. 2023, https://arxiv.org/abs/2310.15141",
        family="speculation",
        spends="`depth` draft passes over `drafts` rows, and up to `drafts` x `depth` + 1 positions a target pass",
        takes=("constraint", "cache"),
        saves="target passes, most at temperature 1",
        needs=("draft",),
    )

    def __post_init__(self) -> None:
        for name in ("drafts", "depth"):
            if getattr(self, name) < 1:
                raise UsageError(f"spectr needs {name} of 1 or more, not {getattr(self, name)}")
        if not isinstance(self.rho, str) and not 1 <= self.rho <= self.drafts:
            raise UsageError(f"spectr needs a rho from 1 to {self.drafts}, the number of drafts, not {self.rho}")

    @property
    def limits(self) -> DraftLimits:
        return DraftLimits(self.drafts * self.depth, self.depth)

    def draft(self, run: TreeRun, drafter: Drafter, limits: DraftLimits) -> Drafting:
        if run.sampler.greedy:
            return topk_beams(drafter, self.drafts, limits)
        return independent_texts(run, drafter, self.drafts, limits)

    def verify(self, run: TreeRun, tree: DraftTree, attachments: Attachments) -> Verification:
        rho = {"star": None, "k": math.inf}[self.rho] if isinstance(self.rho, str) else self.rho
        return verify_tree(run, tree, partial(kseq, rho=rho), attachments)


def independent_texts(run: TreeRun, drafter: Drafter, count: int, limits: DraftLimits) -> Drafting:
    """Draws `count` independent texts. What they begin with alike is one node that counts them."""
    tree = DraftTree()
    count = min(count, limits.max_nodes)
    ends = [ROOT] * count
    for level in range(min(limits.max_depth, limits.max_nodes // max(count, 1))):
        places = list(dict.fromkeys(ends))
        probs = dict(zip(places, (yield from drafter.probs(tree, places)), strict=True))
        tree.draft_probs |= probs
        for text, place in enumerate(ends):
            generator = run.random.at(run.tip.position, DRAFT_STREAM, text, level)
            ends[text] = tree.add(place, draw(probs[place], generator), drafter.name)
    return tree


def kseq(
    target_probs: Tensor,
    draft_probs: Tensor | None,
    drafted: Sequence[int],
    generator: torch.Generator,
    rho: float | None = None,
) -> int:
    """K-SEQ of tokens that were drawn from `draft_probs` independently (algorithm 3), at rho* or at a greater `rho`.

    The returned token is distributed as `target_probs` (Theorem 2). Draws are in float64.
    """
    if not drafted:
        return draw(target_probs, generator)
    assert draft_probs is not None, "drawn tokens have a distribution"
    q, p, k = target_probs, draft_probs, len(drafted)
    rho = float(k) if rho is not None and rho >= k else max(rho or 1.0, kseq_rho(p, q, k))
    for token in drafted:
        if uniform(generator) * rho * float(p[token]) < float(q[token]):
            return token
    return draw(kseq_residual(p, q, k, rho), generator)


def kseq_rho(p: Tensor, q: Tensor, k: int) -> float:
    """Returns rho*: the least rho in [1, k] for which K-SEQ's residual distribution is nowhere negative (section 4).

    It is the root of 1 - (1 - beta)^k - rho beta with beta(rho) = sum min(p, q / rho), which falls. The upper end of
    the bisection is returned, so that the residual is not negative.

    Args:
        p: The draft's distribution [vocab].
        q: The target's distribution [vocab].
        k: The number of candidates.
    """
    support = p > 0
    p, q = p[support].double(), q[support].double()
    middle = (q > p) & (q < k * p)  # elsewhere min(p, q / rho) is the same function of rho on all of [1, k]
    drafts, targets = float(p[q >= k * p].sum()), float(q[q <= p].sum())
    p, q = p[middle], q[middle]

    def excess(rho: float) -> float:
        beta = min(drafts + targets / rho + float(torch.minimum(p, q / rho).sum()), 1.0)
        missed = math.expm1(k * math.log1p(-beta)) if beta < 1 else -1.0
        return -missed - rho * beta

    low, high = 1.0, float(k)
    if excess(low) <= 1e-15:
        return low
    for _ in range(BISECTIONS):
        rho = (low + high) / 2
        if excess(rho) > 0:
            low = rho
        else:
            high = rho
    return high


def kseq_acceptance(p: Tensor, q: Tensor, k: int, rho: float | None = None) -> float:
    """Returns how often K-SEQ accepts one of k independent candidates, at `rho` (rho* by default)."""
    rho = kseq_rho(p, q, k) if rho is None else rho
    beta = min(float(torch.minimum(p.double(), q.double() / rho).sum()), 1.0)
    return 1.0 if beta >= 1 else -math.expm1(k * math.log1p(-beta))


def kseq_residual(p: Tensor, q: Tensor, k: int, rho: float) -> Tensor:
    """Returns the residual distribution, float64 [vocab]: that of the token when none of k candidates is accepted."""
    p, q = p.double(), q.double()
    accepted = kseq_acceptance(p, q, k, rho)
    beta = float(torch.minimum(p, q / rho).sum())
    residual = (q - torch.minimum(p, q / rho) * (accepted / beta if beta > 0 else 0.0)).clamp_(min=0)
    total = float(residual.sum())
    return residual / total if total > 0 else q
