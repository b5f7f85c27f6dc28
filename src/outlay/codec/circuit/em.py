"""Fits hidden Chow-Liu trees by expectation maximization, in mini-batches with a falling step and over all data.

The expected counts of a table's entries, its flows theta * d log p / d theta, come from one pass up and one pass down
the tree, which are batched products, a level of the tree at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from outlay.codec.circuit.latent_tree import LEAST, LatentTree
from outlay.codec.circuit.tree import VariableTree, chow_liu
from outlay.errors import UsageError
from outlay.progress import ShowProgress, silent

AT_ONCE = 500  # samples that go up and down the tree together: 784 variables of 16 states take 50 MB


@dataclass(frozen=True)
class Recipe:
    """How a circuit is fitted."""

    latents: int = 16
    """States of each latent."""
    epochs: int = 20
    """Times that the data are gone through in mini-batches."""
    final_epochs: int = 1
    """Steps at the end, each over all data."""
    batch: int = 1000
    """Samples of a mini-batch."""
    cpu_seconds: float | None = None
    """Processor time of fitting, at most; the step falls with it. None: any."""
    pseudocount: float = 0.1
    """Shared by the entries of each distribution, so that no category is impossible."""
    first_step: float = 0.6
    """The share of a mini-batch's counts in the new tables, at first; it falls as (1 - t)^2."""
    last_step: float = 0.03
    """The least of that share."""
    seed: int = 0
    """Fixes the first tables and the order of samples."""

    def __post_init__(self) -> None:
        for name in ("latents", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"a circuit needs {name} of 1 or more, not {getattr(self, name)}")
        if self.epochs < 0 or self.final_epochs < 0 or self.epochs + self.final_epochs == 0:
            raise UsageError("a circuit is fitted in 1 epoch or more")


def fit(data: Tensor, categories: int, recipe: Recipe | None = None, progress: ShowProgress = silent) -> LatentTree:
    """Fits a hidden Chow-Liu tree.

    Args:
        data: int64 [samples, variables].
        categories: How many values a variable has.
        recipe: How it is fitted.
        progress: Told how far the work is.
    """
    recipe = recipe or Recipe()
    progress("finding the tree", 0, 0)
    flows = Flows(chow_liu(data, categories), data, categories, recipe)
    started = time.process_time()
    steps = recipe.epochs * -(-len(data) // recipe.batch)
    for step, rows in enumerate(_batches(len(data), recipe)):
        spent = time.process_time() - started
        done = step / max(1, steps)
        if recipe.cpu_seconds is not None:
            if spent >= recipe.cpu_seconds:
                break
            done = max(done, spent / recipe.cpu_seconds)
        share = max(recipe.last_step, recipe.first_step * (1 - done) ** 2)
        flows.update(data[rows], share, recipe.pseudocount)
        progress("fitting", round(1000 * done), 1000)
    for epoch in range(recipe.final_epochs):
        progress("fitting on all", epoch, recipe.final_epochs)
        flows.update(data, 1.0, recipe.pseudocount / 10 if recipe.epochs else recipe.pseudocount)
    return flows.circuit()


class Flows:
    """The tables of a circuit while it is fitted, in float32, and the passes that count."""

    def __init__(self, tree: VariableTree, data: Tensor, categories: int, recipe: Recipe) -> None:
        generator = torch.Generator().manual_seed(recipe.seed)
        variables, states = data.shape[1], recipe.latents
        self.tree = tree
        self._order, self._levels = _levels(tree)
        self._buffers = torch.empty(2, variables * AT_ONCE, states)
        counts = torch.zeros(variables, categories)
        counts.scatter_add_(1, data.T, torch.ones(data.T.shape))
        empirical = counts / len(data) + 0.1 / categories
        noise = torch.rand(variables, states, categories, generator=generator) + 0.5
        self.leaves = _normalised(empirical[:, None] * noise)[self._order]  # [D, M, K]
        self.edges = _normalised(torch.rand(variables, states, states, generator=generator) + 0.1)[self._order]
        self.root = _normalised(torch.rand(states, generator=generator) + 0.5)

    def update(self, data: Tensor, share: float, pseudocount: float) -> float:
        """Moves the tables towards those that the flows of some samples give; returns the mean log-likelihood before.

        Args:
            data: int64 [samples, variables].
            share: The new tables' share; 1 is a full step.
            pseudocount: Shared by the entries of each distribution.
        """
        root, edges = torch.zeros_like(self.root), torch.zeros_like(self.edges)
        by_category = self.leaves.transpose(1, 2).contiguous()
        leaves = torch.zeros_like(by_category)  # [D, K, M]
        total = sum(self._count(part, by_category, root, edges, leaves) for part in data.split(AT_ONCE))
        for table, flow in ((self.root, root), (self.edges, edges), (self.leaves, leaves.transpose(1, 2))):
            fresh = _normalised(flow + pseudocount / flow.shape[-1])
            table.mul_(1 - share).add_(fresh, alpha=share)
            table.copy_(_normalised(table.clamp_min(LEAST)))
        return total / len(data)

    def circuit(self) -> LatentTree:
        """Returns the circuit of the tables as they are."""
        back = self._order.argsort()
        edges, leaves = (_normalised(table[back].double()) for table in (self.edges, self.leaves))
        return LatentTree(self.tree, _normalised(self.root.double()), edges, leaves)

    def _count(self, data: Tensor, by_category: Tensor, root: Tensor, edges: Tensor, leaves: Tensor) -> float:
        """Adds the flows of some samples to those of the tables; returns the sum of their log-likelihoods."""
        variables, samples, states = len(self._order), len(data), len(self.root)
        flat = (data.T[self._order] + torch.arange(variables)[:, None] * by_category.shape[1]).reshape(-1)
        up, sent = self._buffers[:, : variables * samples].view(2, variables, samples, states)  # m_c; A_c m_c
        torch.index_select(by_category.view(-1, states), 0, flat, out=up.view(-1, states))
        logs = torch.zeros(samples)
        for level in reversed(self._levels):
            here, passed = up[level.nodes], sent[level.nodes]
            largest = here.amax(2, keepdim=True).clamp_min_(1e-30)
            here /= largest
            logs += largest[:, :, 0].log_().sum(0)
            if level.children:
                torch.bmm(here, self.edges[level.nodes].transpose(1, 2), out=passed)
                passed.clamp_min_(1e-30)
                for children in level.children:  # of as many parents, the first ones of the level above
                    up[level.above.start : level.above.start + len(children)] *= sent[children]
        top = up[0] * self.root
        likelihood = top.sum(1)
        post = sent  # where a level's posterior is written, what it sent has been read
        post[0] = top / likelihood[:, None]
        root += post[0].sum(0)
        for level in self._levels[1:]:
            ratio = post[level.parents].div_(sent[level.nodes])
            here, passed = up[level.nodes], post[level.nodes]
            edges[level.nodes] += torch.bmm(ratio.transpose(1, 2), here).mul_(self.edges[level.nodes])
            torch.bmm(ratio, self.edges[level.nodes], out=passed)
            passed *= here
        leaves.view(-1, states).index_add_(0, flat, post.view(-1, states))
        return float((logs + likelihood.log()).sum())


@dataclass(frozen=True)
class _Level:
    """The variables of one depth, side by side in the order of the tables, those with the most children first."""

    nodes: slice
    above: slice
    """The variables of the depth above."""
    parents: Tensor
    """int64 [nodes], the place of each one's parent."""
    children: tuple[Tensor, ...]
    """First, second, ... children of the first parents above that have as many, int64."""


def _levels(tree: VariableTree) -> tuple[Tensor, list[_Level]]:
    """Returns an order of the variables in which each depth is a slice, int64 [D], and the depths, root first."""
    offspring: list[list[int]] = [[] for _ in tree.parents]
    for node in tree.preorder:
        if tree.depths[node]:
            offspring[tree.parents[node]].append(node)
    order: list[int] = []
    place: dict[int, int] = {}
    levels: list[_Level] = []
    above = slice(0, 0)
    for depth in range(max(tree.depths) + 1):
        nodes = [variable for variable in tree.preorder if tree.depths[variable] == depth]
        nodes.sort(key=lambda node: -len(offspring[node]))
        here = slice(len(order), len(order) + len(nodes))
        place.update({node: here.start + number for number, node in enumerate(nodes)})
        mothers = order[above]
        order += nodes
        most = len(offspring[mothers[0]]) if mothers else 0
        children = tuple(
            torch.tensor([place[offspring[mother][turn]] for mother in mothers if turn < len(offspring[mother])])
            for turn in range(most)
        )
        parents = torch.tensor([place[tree.parents[node]] for node in nodes] if depth else [0])
        levels.append(_Level(here, above, parents, children))
        above = here
    return torch.tensor(order), levels


def _batches(samples: int, recipe: Recipe) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.epochs):
        yield from torch.randperm(samples, generator=generator).split(recipe.batch)


def _normalised(table: Tensor) -> Tensor:
    return table / table.sum(-1, keepdim=True)
