"""One round of speculation: one target pass over what was drafted, a walk down it, and what it decides, committed.

tree = yield from ...           # whatever drafts
yield from judge(run, tree, verifier)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from outlay.engine.method import Request
from outlay.engine.run import Run
from outlay.kernels import Top
from outlay.speculation.drafter import Attachments, Drafter, Growth, Proposer
from outlay.speculation.tree import ROOT, DraftTree
from outlay.speculation.verify import Verifier
from outlay.tree.token_tree import Node

ORDER = 2  # the random stream of the order of equal drafts; 0 is the text's own, 1 that of drafts


class Room:
    """How much a round may draft: nodes by the budget, depth by the tokens that may still be written."""

    def __init__(self, run: Run, nodes: int, depth: int) -> None:
        left = min(run.left("target_tokens") - 1, float(nodes))
        self.nodes = max(0, int(left))
        self.depth = max(0, min(depth, run.max_tokens - len(run.tokens) - 1, self.nodes))


def proposed(drafter: Drafter | Proposer, room: Room, grow: Callable[[Drafter, Room], Growth]) -> Growth:
    """Returns the tree that `grow` draws from a drafter's law, or what one without a law proposes; an empty one where
    there is no room, or where the drafter can't draft yet.
    """
    if room.depth == 0:
        return DraftTree()
    if isinstance(drafter, Proposer):
        return drafter.propose(room.nodes, room.depth)
    if not drafter.begin():
        return DraftTree()
    if drafter.reach is not None:
        room.depth = min(room.depth, drafter.reach)
    return (yield from grow(drafter, room))


def plant(run: Run, tree: DraftTree) -> list[Node]:
    """Grows the drafted nodes below the tip of the target's tree; returns them in the order of `tree`."""
    return run.tree.extend(tree.parents, tree.tokens, tree.origins)


def judge(
    run: Run, tree: DraftTree, verify: Verifier, drafter: Attachments | None = None
) -> Generator[Request, Any, list[int]]:
    """Scores a drafted tree in one target pass, walks down it, and commits what is taken and the token behind it.

    Returns the drafted nodes that were taken. `drafter` may attach nodes to the pass.
    """
    nodes = plant(run, tree)
    extra = drafter.attach(tree, nodes) if drafter is not None else []
    asked, count = [run.tip, *nodes, *extra], 1 + len(nodes)
    rows: Tensor | Top
    best: Top
    logits: Tensor
    if run.sampler.greedy and run.sampler.raw and not (drafter is not None and drafter.needs_logits):
        rows = best = yield run.target.top(asked, max(1, drafter.wanted if drafter is not None and extra else 1))
        tokens = best.tokens.tolist()
        path, token = walk(tree, lambda at: tokens[at + 1][0])
    else:
        rows = logits = yield run.target.forward(asked)
        path, token = walk(tree, lambda at: choose(run, tree, at, asked[at + 1], logits[at + 1], verify))
    commit(run, tree, nodes, path, token)
    if drafter is not None and extra:
        drafter.observe(path, rows_from(rows, count))
    return path


def rows_from(rows: Tensor | Top, begin: int) -> Tensor | Top:
    """Returns the rows behind the first `begin`."""
    return rows[begin:] if isinstance(rows, Tensor) else Top(rows.tokens[begin:], rows.logits[begin:])


def choose(run: Run, tree: DraftTree, at: int, node: Node, logits: Tensor, verify: Verifier) -> int:
    """Returns the token after a node, by the verifier; `logits` [vocab] are the target's there.

    Tokens that were chosen, not drawn, are matched.
    """
    if run.sampler.greedy or at not in tree.laws:
        return run.sampler.pick(logits, node)
    drafted = [tree.tokens[child] for child in tree.children(at) for _ in range(tree.copies[child])]
    if len(set(drafted)) < len(drafted):
        # Independent draws come in any order; that of a tree, which has equal tokens side by side, would favour them.
        order = torch.randperm(len(drafted), generator=run.random.at(node.position, ORDER)).tolist()
        drafted = [drafted[place] for place in order]
    q = run.sampler.probs(logits, node)
    return verify(q, tree.laws[at], drafted, run.random.at(node.position, 0))


def walk(tree: DraftTree, token_after: Any) -> tuple[list[int], int]:
    """Goes down the tree as long as the token that follows was drafted. Returns the nodes, and the token that was not.

    `token_after(at)` gives the token that follows a node, and is asked once for each node of the way.
    """
    at, path = ROOT, list[int]()
    while True:
        token = token_after(at)
        child = tree.child(at, token)
        if child is None:
            return path, token
        path.append(child)
        at = child


def commit(run: Run, tree: DraftTree, nodes: Sequence[Node], path: Sequence[int], token: int) -> None:
    """Decides the nodes of a path and the token behind it, and counts the round."""
    before = len(run.tokens)
    run.accept(nodes[path[-1]] if path else run.tip)
    taken = len(run.tokens) - before
    counts = {f"tried_{depth}": 1.0 for depth in range(1, min(tree.depth, len(path) + 1) + 1)}
    counts |= {f"taken_{depth}": 1.0 for depth in range(1, taken + 1)}
    run.count(rounds=1, drafted=len(tree), accepted=taken, **counts)
    run.commit(token)


def as_uniforms(generator: torch.Generator, *shape: int) -> Tensor:
    """Returns random numbers in (0, 1), float64 of `shape`."""
    return torch.rand(shape, generator=generator, dtype=torch.float64).clamp_(min=1e-300)
