"""Trees that are drawn or chosen from a drafter's law."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outlay.engine.run import Run
from outlay.engine.sampling import draw
from outlay.speculation.drafter import Drafter, Growth
from outlay.speculation.round import Room, as_uniforms
from outlay.speculation.tree import ROOT, DraftTree

DRAFT = 1  # the random stream of drafts; 0 is the text's own


def chosen(drafter: Drafter, branching: Sequence[int], room: Room) -> Growth:
    """The most probable `branching[l]` tokens after each node of level l: what is drafted at temperature 0."""
    tree, level = DraftTree(), [ROOT]
    for width in branching[: room.depth]:
        best = yield from drafter.best(tree, level, width)
        grown = [
            tree.add(place, token, drafter.name)
            for place, tokens in zip(level, best.tokens.tolist(), strict=True)
            for token in tokens
        ]
        level = grown[: max(0, room.nodes - len(tree) + len(grown))]
        if not level:
            break
    return tree.cut(room.nodes, room.depth)


def chosen_beams(drafter: Drafter, width: int, depth: int, room: Room) -> Growth:
    """The `width` most probable texts of each length, by the drafter's law: stochastic beams at temperature 0."""
    tree, beams = DraftTree(), [(ROOT, 0.0)]
    for _ in range(min(depth, room.depth)):
        best = yield from drafter.best(tree, [place for place, _ in beams], width)
        scores = best.logprobs + torch.tensor([[score] for _, score in beams])
        order = scores.flatten().topk(min(width, scores.numel()))
        tokens = best.tokens.flatten().tolist()
        beams = [
            (tree.add(beams[index // best.tokens.shape[1]][0], tokens[index], drafter.name), score)
            for index, score in zip(order.indices.tolist(), order.values.tolist(), strict=True)
        ]
    return tree.cut(room.nodes, room.depth)


def drawn_without_replacement(run: Run, drafter: Drafter, branching: Sequence[int], room: Room) -> Growth:
    """Up to `branching[l]` different tokens after each node of level l, drawn one after the other from what the law has
    left: the largest of log p plus Gumbel noise, in descending order (RSD, Jeon et al. 2024, section 3.2.1).
    """
    tree, level = DraftTree(), [ROOT]
    for width in branching[: room.depth]:
        laws = yield from drafter.laws(tree, level)
        grown = []
        for place, law in zip(level, laws, strict=True):
            tree.laws[place] = law
            generator = run.random.at(run.tip.position, DRAFT, place + 1)
            grown += [tree.add(place, token, drafter.name) for token in gumbel_top_k(law, width, generator)]
        level = grown[: max(0, room.nodes - len(tree) + len(grown))]
        if not level:
            break
    return tree.cut(room.nodes, room.depth)


def drawn_beams(run: Run, drafter: Drafter, width: int, depth: int, room: Room) -> Growth:
    """`width` texts of each length, drawn without replacement: stochastic beam search (Kool et al. 2019; RSD, Jeon et
    al. 2024, section 3.2.2).

    Each text has its log-probability phi, and psi, phi with Gumbel noise such that the largest psi of a text's
    continuations is the text's own. All that are among the `width` largest psi of a level stay in the tree, siblings in
    descending order.
    """
    tree = DraftTree()
    beams = [(ROOT, 0.0, 0.0)]  # place, phi, psi
    for _ in range(min(depth, room.depth)):
        laws = yield from drafter.laws(tree, [place for place, _, _ in beams])
        phis, psis = [], []
        for (place, phi, psi), law in zip(beams, laws, strict=True):
            tree.laws[place] = law
            phis.append(phi + law.double().log())
            generator = run.random.at(run.tip.position, DRAFT, place + 1)
            psis.append(conditioned(phis[-1] + gumbel(len(law), generator), psi))
        flat = torch.cat(psis)
        top = flat.topk(min(width, len(flat)))
        size, chosen = len(laws[0]), []
        for index, psi in zip(top.indices.tolist(), top.values.tolist(), strict=True):
            if psi > -torch.inf:
                beam, token = divmod(index, size)
                chosen.append((tree.add(beams[beam][0], token, drafter.name), float(phis[beam][token]), psi))
        beams = chosen
        if not beams:
            break
    return tree.cut(room.nodes, room.depth)


def drawn_independently(run: Run, drafter: Drafter, branching: Sequence[int], room: Room) -> Growth:
    """`branching[l]` tokens after each node of level l, drawn independently: SpecInfer's trees. A node that was drawn
    several times gets the children of one.
    """
    tree, level = DraftTree(), [ROOT]
    for width in affordable(branching[: room.depth], room.nodes):
        laws = yield from drafter.laws(tree, level)
        grown: dict[int, None] = {}
        for place, law in zip(level, laws, strict=True):
            tree.laws[place] = law
            generator = run.random.at(run.tip.position, DRAFT, place + 1)
            grown |= dict.fromkeys(tree.add(place, draw(law, generator), drafter.name) for _ in range(width))
        level = list(grown)
    return tree


def drawn_texts(run: Run, drafter: Drafter, count: int, depth: int, room: Room) -> Growth:
    """`count` independent texts of `depth` tokens: SpecTr's drafts. What they begin with alike is one node, which
    counts how many of them go through it.
    """
    tree = DraftTree()
    count = min(count, room.nodes)
    ends = [ROOT] * count
    for level in range(min(depth, room.depth, room.nodes // max(count, 1))):
        places = list(dict.fromkeys(ends))
        laws = dict(zip(places, (yield from drafter.laws(tree, places)), strict=True))
        tree.laws |= laws
        for text, place in enumerate(ends):
            generator = run.random.at(run.tip.position, DRAFT, text, level)
            ends[text] = tree.add(place, draw(laws[place], generator), drafter.name)
    return tree


def tree_size(branching: Sequence[int]) -> int:
    """Returns how many nodes a tree has that grows `branching[l]` children from each node of level l."""
    size, level = 0, 1
    for width in branching:
        level *= width
        size += level
    return size


def affordable(branching: Sequence[int], nodes: int) -> list[int]:
    """Returns the levels of a tree that has at most `nodes` nodes, whatever is drawn: independent draws may not be left
    out by what they turned out to be.
    """
    levels = [min(branching[0], nodes)] if branching and nodes else []
    for width in branching[1:]:
        if tree_size([*levels, width]) > nodes:
            break
        levels.append(width)
    return levels


def gumbel_top_k(probs: Tensor, k: int, generator: torch.Generator) -> list[int]:
    """Draws tokens without replacement: those with the k largest log-probabilities after Gumbel noise is added.

    Args:
        probs: a distribution, [vocab].
        k: how many tokens; fewer where fewer have a probability above 0.
        generator: where the noise comes from.

    Returns:
        The tokens in the order in which they are drawn one after the other.
    """
    top = (probs.double().log() + gumbel(len(probs), generator)).topk(min(k, len(probs)))
    drawn = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [token for token, value in drawn if value > -torch.inf]


def gumbel(size: int, generator: torch.Generator) -> Tensor:
    """Returns standard Gumbel noise, float64 [size]."""
    return -(-as_uniforms(generator, size).log()).log()


def conditioned(noisy: Tensor, largest: float) -> Tensor:
    """Gumbels [n] -> the same, on condition that the largest of them is `largest` (Kool et al. 2019, appendix B.3)."""
    below = noisy.max() - noisy
    # log(1 - exp(-below)), -inf at the largest
    u = largest - noisy + torch.log(-torch.expm1(-below))
    return largest - u.clamp(min=0) - torch.log1p(torch.exp(-u.abs()))
