"""Parallel prompt decoding: a model guesses several tokens ahead at trained prompt tokens, and verifies them itself.

Prompt tokens hang from every node of a small tree; the pass that verifies the tree makes the guesses for the next one,
and the shape of the tree follows from measured accuracies and from what a pass costs here (Chen et al. 2024).
Lossless: one token is drawn at each node and matched with the tree, so the text is what greedy or sample write with the
same seed. Typical acceptance, which the authors use, changes the distribution; it is an option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from outlay.decode.draft.ppd.prompt_tokens import ORIGIN, PromptDrafter, open_prompt_tokens
from outlay.decode.draft.ppd.sparse_tree import SparseTree, TreePlan, fastest, plan_trees
from outlay.engine.method import About, Method, Work
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.kernels import Top
from outlay.speculation.costs import PassCosts, costs_of, measure_beside
from outlay.speculation.rounds import (
    ROOT,
    Attachments,
    DraftTree,
    PathRule,
    sample_and_match,
    verify_by_path,
    verify_tree,
)
from outlay.tree.token_tree import Node

Accuracy = tuple[tuple[float, ...], ...]

TYPICAL_CONTEXT = 256  # tokens of text for which the size of the trees is chosen


@dataclass(frozen=True)
class PPD(Method):
    """Parallel prompt decoding with a dynamic sparse tree (Chen et al. 2024, sections 3 and 4)."""

    prompts: str = "default"
    """The file of the prompt tokens (`outlay train ppd`); "default": those that were trained for the model."""

    rows: int | None = None
    """The most rows of a pass: the last token, the tree, and all prompt tokens; by default as many as pay here."""

    most: int = 24
    """The most rows of a pass that are considered by default."""

    acceptance: Literal["match", "typical"] = "match"
    """How guesses are accepted: "match" is lossless; "typical" accepts what is likely enough. At temperature 0 both are
    the same."""

    epsilon: float = 0.09
    """Typical acceptance: the probability that is always enough."""

    delta: float = 0.3
    """Typical acceptance: the factor of exp(-entropy), above which a probability is enough."""

    about: ClassVar[About] = About(
        name="ppd",
        summary="guesses of the model itself at trained prompt tokens",
        paper="Chen et al. 2024, https://arxiv.org/abs/2405.18628",
        family="speculation",
        spends="the tree's and the prompt tokens' positions in each target pass",
        takes=("constraint",),
        saves="target passes, with no draft model",
        needs=("prompt tokens",),
    )

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 4:
            raise UsageError(
                f"ppd needs 4 rows or more, for the last token and a guess with a prompt token each, not {self.rows}"
            )

    def check(self, submission: Submission) -> None:
        open_prompt_tokens(self.prompts, submission.model)

    def decode(self, run: TreeRun) -> Work:
        prompts = open_prompt_tokens(self.prompts, run.model)
        if self.rows is None:
            measure_beside(run, run.model)
        costs = costs_of(run.model) if self.rows is None else None
        plan = tree_plan(prompts.accuracy, self.rows, costs, self.most)
        if plan is None:  # no tree pays here
            node = run.tip
            while True:
                node = run.commit((yield from run.next_token(node)))

        drafter = PromptDrafter(run, prompts, len(plan.trees))
        while True:
            tree, prompt_tokens = sparse_tree(run, drafter, plan)
            if self.acceptance == "typical" and not run.sampler.greedy:
                rule = typical_acceptance(run, tree, self.epsilon, self.delta)
                yield from verify_by_path(run, tree, rule, prompt_tokens)
            else:
                yield from verify_tree(run, tree, sample_and_match, prompt_tokens)


class HungPromptTokens(Attachments):
    """The prompt tokens of one pass: `counts` of them at the root and at each node of its tree."""

    def __init__(self, drafter: PromptDrafter, counts: Sequence[int]) -> None:
        self.wanted_topk, self.needs_logits = drafter.wanted_topk, drafter.needs_logits
        self._drafter, self._counts = drafter, counts

    def attach(self, tree: DraftTree, nodes: Sequence[Node]) -> list[Node]:
        return self._drafter.hang(nodes, self._counts)

    def observe(self, path: Sequence[int], rows: Tensor | Top) -> None:
        self._drafter.observe(path, rows)


def sparse_tree(run: TreeRun, drafter: PromptDrafter, plan: TreePlan) -> tuple[DraftTree, HungPromptTokens]:
    """Returns the tree for the number of guesses at hand, and its prompt tokens; both empty at the end of the run."""
    state, left = drafter.max_depth, run.max_tokens - len(run.tokens) - 1
    run.count(**{f"state_{state}": 1})
    if left == 0 or min(map(run.left, ("target_tokens", "drafted", "accepted"))) < plan.length:
        return DraftTree(), HungPromptTokens(drafter, (0,))
    if state == 0:
        return DraftTree(), HungPromptTokens(drafter, (len(plan.trees),))
    shape = plan.trees[state - 1].cut(left)
    return filled(drafter, shape), HungPromptTokens(drafter, (shape.root, *shape.prompts))


def filled(drafter: PromptDrafter, shape: SparseTree) -> DraftTree:
    """Returns the draft tree of a shape, in its order: at each depth, the tokens of that rank in the guess."""
    tokens = drafter.ranked()[0].tolist()
    tree = DraftTree()
    places: dict[tuple[int, ...], int] = {(): ROOT}
    for path in shape.paths:
        places[path] = tree.add(places[path[:-1]], tokens[len(path) - 1][path[-1]], ORIGIN)
    return tree


@lru_cache(maxsize=64)  # planning takes a second, and is the same for every run
def tree_plan(accuracy: Accuracy, rows: int | None, costs: PassCosts | None = None, most: int = 24) -> TreePlan | None:
    """Returns the trees for passes of at most `rows` rows, or those that are fastest by the costs of passes."""
    if costs is not None:
        return fastest(accuracy, lambda rows: costs(rows, TYPICAL_CONTEXT), most)
    assert rows is not None
    plans = [plan_trees(accuracy[:m], rows) for m in range(1, len(accuracy) + 1)]
    return max(filter(None, plans), key=lambda plan: plan.tau)


def typical_acceptance(run: TreeRun, tree: DraftTree, epsilon: float, delta: float) -> PathRule:
    """Returns the rule that accepts the longest path of tokens that are likely enough; see `typical_tokens`."""

    def rule(nodes: Sequence[Node], logits: Tensor) -> tuple[list[int], int]:
        enough = [
            typical_tokens(run.sampler.probs(row, node), epsilon, delta)
            for row, node in zip(logits[: len(nodes)], nodes, strict=True)
        ]
        accepted: list[int] = []
        for index in range(len(tree)):
            path = tree.path(index)
            if len(path) > len(accepted) and all(bool(enough[tree.parents[at] + 1][tree.tokens[at]]) for at in path):
                accepted = path
        last = accepted[-1] + 1 if accepted else 0
        return accepted, run.sampler.pick(logits[last], nodes[last])

    return rule


def typical_tokens(target_probs: Tensor, epsilon: float, delta: float) -> Tensor:
    """Returns which tokens typical acceptance accepts, bool [vocab] (Medusa, Cai et al. 2024, section 2.3.1).

    They are those more probable than the lesser of `epsilon` and `delta` exp(-entropy). The text is not distributed as
    the target's own.
    """
    entropy = torch.special.entr(target_probs).sum()
    return target_probs > torch.minimum(torch.tensor(epsilon), delta * torch.exp(-entropy))
