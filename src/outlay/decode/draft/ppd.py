"""Parallel prompt decoding: a model guesses several tokens ahead at trained prompt tokens, and verifies them itself.

Prompt tokens hang from every node of a small tree; the pass that verifies the tree makes the guesses for the next one,
and the shape of the tree follows from measured accuracies and from what a pass costs here (Chen et al. 2024).
Exact: one token is drawn at each node and matched with the tree, so the text is what greedy or sample write with the
same seed. Typical acceptance, which the authors use, writes a text of another law; it is an option.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

from torch import Tensor

from outlay.engine.method import About, Method, Request, Work
from outlay.engine.run import Run
from outlay.errors import UsageError
from outlay.speculation.cost import PassCosts, costs_of
from outlay.speculation.prompts import ORIGIN, PromptDrafter, PromptTokens
from outlay.speculation.round import commit, judge, plant
from outlay.speculation.sources import prompts_of
from outlay.speculation.sparse_tree import SparseTree, TreePlan, fastest, plan_trees
from outlay.speculation.tree import ROOT, DraftTree
from outlay.speculation.verify import sample_and_match, typical

Accuracy = tuple[tuple[float, ...], ...]

TYPICAL_CONTEXT = 256  # tokens of text for which the size of the trees is chosen


@dataclass(frozen=True)
class PPD(Method):
    """Drafts with the prompt tokens in the file `prompts`, or those that were trained for the model ("default").

    A pass has at most `rows` rows: the last token, the tree, and all prompt tokens; by default as many as pay on this
    machine, up to `most`. `acceptance` "typical" takes drafted tokens above the lesser of `epsilon` and `delta` times
    exp(-entropy), which is not exact; at temperature 0 both are the same.
    """

    prompts: str = "default"
    rows: int | None = None
    most: int = 24
    acceptance: Literal["match", "typical"] = "match"
    epsilon: float = 0.09
    delta: float = 0.3

    about: ClassVar[About] = About(
        name="ppd",
        summary="guesses of the model itself at trained prompt tokens",
        paper="Chen et al. 2024, https://arxiv.org/abs/2405.18628",
        family="speculation",
        spends="the tree's and the prompt tokens' positions in each target pass",
        saves="target passes, with no draft model",
        needs=("prompt tokens",),
    )

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 4:
            raise UsageError(
                f"ppd needs 4 rows or more, for the last token and a guess with a prompt token each, not {self.rows}"
            )

    def check(self, run: Run) -> None:
        prompts_of(self.prompts, run)
        if self.rows is None:
            costs_of(run.model)

    def decode(self, run: Run) -> Work:
        prompts = prompts_of(self.prompts, run)
        plan = self._plan(run, prompts)
        if plan is None:  # no tree pays here
            node = run.tip
            while True:
                node = run.commit((yield from run.next_token(node)))
        drafter = PromptDrafter(run, prompts, len(plan.trees))
        while True:
            tree = self._tree(run, drafter, plan)
            if self.acceptance == "typical" and not run.sampler.greedy:
                yield from self._judge_typical(run, tree, drafter)
            else:
                yield from judge(run, tree, sample_and_match, drafter)

    @staticmethod
    def _tree(run: Run, drafter: PromptDrafter, plan: TreePlan) -> DraftTree:
        """Returns the tree of the state, and has prompt tokens hung from it; neither where the run is at its end."""
        state, left = drafter.reach, run.max_tokens - len(run.tokens) - 1
        run.count(**{f"state_{state}": 1})
        drafter.hang = (0,)
        if left == 0 or run.left("target_tokens") < plan.length:
            return DraftTree()
        if state == 0:
            drafter.hang = None
            return DraftTree()
        shape = plan.trees[state - 1].cut(left)
        drafter.hang = (shape.root, *shape.prompts)
        return sparse(drafter, shape)

    def _plan(self, run: Run, prompts: PromptTokens) -> TreePlan | None:
        costs = costs_of(run.model) if self.rows is None else None
        return tree_plan(prompts.accuracy, self.rows, costs, self.most)

    def _judge_typical(self, run: Run, tree: DraftTree, drafter: PromptDrafter) -> Generator[Request, Any, None]:
        """As `judge`, by typical acceptance: the longest path of tokens that are likely enough."""
        nodes = plant(run, tree)
        extra = drafter.attach(tree, nodes)
        logits: Tensor = yield run.target.forward([run.tip, *nodes, *extra])
        taken = [typical(run.sampler.probs(row), self.epsilon, self.delta) for row in logits[: 1 + len(nodes)]]
        path: list[int] = []
        for index in range(len(tree)):
            way = tree.way(index)
            if len(way) > len(path) and all(bool(taken[tree.parents[at] + 1][tree.tokens[at]]) for at in way):
                path = way
        last = path[-1] + 1 if path else 0
        token = run.sampler.pick(logits[last], nodes[path[-1]] if path else run.tip)
        commit(run, tree, nodes, path, token)
        drafter.observe(path, logits[1 + len(nodes) :])


@lru_cache(maxsize=64)  # planning takes a second, and is the same for every run
def tree_plan(accuracy: Accuracy, rows: int | None, costs: PassCosts | None = None, most: int = 24) -> TreePlan | None:
    """Returns the trees for passes of so many rows, or those that are fastest by the costs of passes."""
    if costs is not None:
        return fastest(accuracy, lambda rows: costs(rows, TYPICAL_CONTEXT), most)
    assert rows is not None
    plans = [plan_trees(accuracy[:m], rows) for m in range(1, len(accuracy) + 1)]
    return max(filter(None, plans), key=lambda plan: plan.tau)


def sparse(drafter: PromptDrafter, shape: SparseTree) -> DraftTree:
    """Returns the tree of a shape, its nodes in the shape's order: at each depth the tokens that its guess ranks so."""
    tokens = drafter.ranked()[0].tolist()
    tree = DraftTree()
    places: dict[tuple[int, ...], int] = {(): ROOT}
    for path in shape.paths:
        places[path] = tree.add(places[path[:-1]], tokens[len(path) - 1][path[-1]], ORIGIN)
    return tree
