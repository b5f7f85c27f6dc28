"""Trees that several methods draft: of the most probable tokens, and of tokens drawn without replacement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outlay.engine.tree_run import TreeRun
from outlay.speculation.rounds import DRAFT_STREAM, ROOT, Drafter, Drafting, DraftLimits, DraftTree


def topk_tree(drafter: Drafter, branching: Sequence[int], limits: DraftLimits) -> Drafting:
    """Returns the tree of the most probable `branching[l]` tokens after each node of level l."""
    tree, level = DraftTree(), [ROOT]
    for width in branching[: limits.max_depth]:
        top = yield from drafter.topk(tree, level, width)
        grown = [
            tree.add(place, token, drafter.name)
            for place, tokens in zip(level, top.tokens.tolist(), strict=True)
            for token in tokens
        ]
        level = grown[: max(0, limits.max_nodes - len(tree) + len(grown))]
        if not level:
            break
    return tree.cut(limits)


def topk_beams(drafter: Drafter, width: int, limits: DraftLimits) -> Drafting:
    """Returns the tree of the `width` most probable texts of each length."""
    tree, beams = DraftTree(), [(ROOT, 0.0)]
    for _ in range(limits.max_depth):
        top = yield from drafter.topk(tree, [place for place, _ in beams], width)
        scores = top.logprobs + torch.tensor([[score] for _, score in beams])
        order = scores.flatten().topk(min(width, scores.numel()))
        tokens = top.tokens.flatten().tolist()
        beams = [
            (tree.add(beams[index // top.tokens.shape[1]][0], tokens[index], drafter.name), score)
            for index, score in zip(order.indices.tolist(), order.values.tolist(), strict=True)
        ]
    return tree.cut(limits)


def tree_size(branching: Sequence[int]) -> int:
    """Returns how many nodes a tree has that grows `branching[l]` children from each node of level l."""
    size, level = 0, 1
    for width in branching:
        level *= width
        size += level
    return size


def gumbel_topk_tree(run: TreeRun, drafter: Drafter, branching: Sequence[int], limits: DraftLimits) -> Drafting:
    """Draws up to `branching[l]` different tokens after each node of level l by Gumbel-top-k (RSD, section 3.2.1).

    The largest of log p plus Gumbel noise, in descending order, are distributed as tokens that are drawn one after the
    other from what the distribution has left.
    """
    tree, level = DraftTree(), [ROOT]
    for width in branching[: limits.max_depth]:
        probs = yield from drafter.probs(tree, level)
        grown = []
        for place, draft_probs in zip(level, probs, strict=True):
            tree.draft_probs[place] = draft_probs
            generator = run.random.at(run.tip.position, DRAFT_STREAM, place + 1)
            grown += [tree.add(place, token, drafter.name) for token in gumbel_topk(draft_probs, width, generator)]
        level = grown[: max(0, limits.max_nodes - len(tree) + len(grown))]
        if not level:
            break
    return tree.cut(limits)


def gumbel_topk(probs: Tensor, k: int, generator: torch.Generator) -> list[int]:
    """Draws up to k tokens without replacement from `probs` [vocab], in the order in which they are drawn."""
    top = (probs.double().log() + gumbel(len(probs), generator)).topk(min(k, len(probs)))
    drawn = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [token for token, value in drawn if value > -torch.inf]


def gumbel(size: int, generator: torch.Generator) -> Tensor:
    """Returns standard Gumbel noise, float64 [size]."""
    uniform = torch.rand(size, generator=generator, dtype=torch.float64).clamp_(min=1e-300)
    return -(-uniform.log()).log()
