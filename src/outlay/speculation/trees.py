"""Trees that several methods draft: of the most probable tokens, and of tokens drawn without replacement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
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


def distinct_tree(run: TreeRun, drafter: Drafter, branching: Sequence[int], limits: DraftLimits) -> Drafting:
    """Draws up to `branching[l]` different tokens after each node of level l, one after the other.

    Siblings are distributed as those of Gumbel-top-k are, in their order (RSD, section 3.2.1).
    """
    tree, level = DraftTree(), [ROOT]
    for width in branching[: limits.max_depth]:
        probs = yield from drafter.probs(tree, level)
        grown = []
        for place, draft_probs in zip(level, probs, strict=True):
            tree.draft_probs[place] = draft_probs
            generator = run.random.at(run.tip.position, DRAFT_STREAM, place + 1)
            drawn = draw_distinct(draft_probs, width, generator)
            grown += [tree.add(place, token, drafter.name) for token, _ in drawn]
        level = grown[: max(0, limits.max_nodes - len(tree) + len(grown))]
        if not level:
            break
    return tree.cut(limits)


class Drawn(NamedTuple):
    """A token, and the share of the probability that was left when it was drawn."""

    token: int
    left: float


def draw_distinct(probs: Tensor, k: int, generator: torch.Generator) -> list[Drawn]:
    """Draws up to k different tokens, each from what the ones before leave of `probs` [vocab]."""
    values = probs.cpu().numpy()
    edges = values.cumsum(dtype=np.float64)
    total, k = float(edges[-1]), min(k, int(np.count_nonzero(values)))
    drawn, left = list[Drawn](), total
    for number in torch.rand(k, generator=generator, dtype=torch.float64).tolist():
        if left <= 0:  # the rest is lost in rounding
            break
        at = number * left
        for token in sorted(token for token, _ in drawn):  # steps over what is drawn already
            if at >= edges[token] - values[token]:
                at = max(at + float(values[token]), float(edges[token]))
        token = min(int(edges.searchsorted(at, side="right")), len(values) - 1)
        if not values[token] or any(token == each.token for each in drawn):  # at the very end, by rounding
            rest = values.copy()
            rest[[each.token for each in drawn]] = 0
            token = int(rest.nonzero()[0][-1])
        drawn.append(Drawn(token, left / total))
        left -= float(values[token])
    return drawn
