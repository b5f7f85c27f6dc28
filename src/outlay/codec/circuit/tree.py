"""The tree of a hidden Chow-Liu tree: the maximum spanning tree of mutual information, rooted at its centre."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outlay.errors import UsageError

BINS = 16  # levels that values are binned to, at most, before mutual information is counted
CELLS = 4096  # levels of all variables together, about: every pair of them is counted
PAIRS_FROM = 10_000  # samples that mutual information is counted on, at most


@dataclass(frozen=True)
class VariableTree:
    """A rooted tree over variables 0..D-1."""

    parents: tuple[int, ...]
    """The parent of each variable, -1 for the root."""

    def __post_init__(self) -> None:
        count = len(self.parents)
        roots = [variable for variable, parent in enumerate(self.parents) if parent < 0]
        if len(roots) != 1 or any(parent >= count for parent in self.parents) or len(self.preorder) < count:
            raise UsageError("the variables of a circuit form a tree with one root; this is none")

    @property
    def root(self) -> int:
        """The variable without a parent."""
        return self.parents.index(-1)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """The children of each variable, the one with the larger subtree first, the lower variable among equals."""
        below: list[list[int]] = [[] for _ in self.parents]
        for variable, parent in enumerate(self.parents):
            if parent >= 0:
                below[parent].append(variable)
        sizes = [1] * len(self.parents)
        for variable in reversed(_reach(self.root, below)):
            if self.parents[variable] >= 0:
                sizes[self.parents[variable]] += sizes[variable]
        return tuple(tuple(sorted(each, key=lambda child: (-sizes[child], child))) for each in below)

    @cached_property
    def preorder(self) -> tuple[int, ...]:
        """The variables depth first, each before what is below it, larger subtrees first."""
        if -1 not in self.parents:
            return ()
        return tuple(_reach(self.root, self.children))

    @cached_property
    def postorder(self) -> tuple[int, ...]:
        """The variables depth first, each after what is below it, larger subtrees first: the paper's order."""
        order, stack = [], [self.root]
        while stack:
            variable = stack.pop()
            order.append(variable)
            stack += self.children[variable]
        return tuple(reversed(order))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """How far each variable is below the root."""
        depths = [0] * len(self.parents)
        for variable in self.preorder:
            if self.parents[variable] >= 0:
                depths[variable] = depths[self.parents[variable]] + 1
        return tuple(depths)

    def path(self, variable: int) -> list[int]:
        """Returns the variables from the root down to one of them, both included."""
        found = [variable]
        while self.parents[found[-1]] >= 0:
            found.append(self.parents[found[-1]])
        return found[::-1]


def _reach(root: int, children: Sequence[Sequence[int]]) -> list[int]:
    order, stack = [], [root]
    while stack:
        variable = stack.pop()
        order.append(variable)
        stack += reversed(children[variable])
    return order


def chow_liu(data: Tensor, categories: int) -> VariableTree:
    """Returns the Chow-Liu tree of data: the spanning tree of the most mutual information, rooted at its centre.

    Args:
        data: int64 [samples, variables].
        categories: How many values a variable has; more than 16 are binned.
    """
    if data.shape[1] == 1:
        return VariableTree((-1,))
    return rooted_at_centre(spanning_tree(mutual_information(data[:PAIRS_FROM], categories)))


def mutual_information(data: Tensor, categories: int) -> npt.NDArray[np.float64]:
    """Returns the mutual information of each pair of variables in nats, [variables, variables].

    Args:
        data: int64 [samples, variables].
        categories: How many values a variable has.
    """
    samples, variables = data.shape
    levels = min(categories, max(2, min(BINS, CELLS // variables)))
    binned = data * levels // categories
    joint = torch.zeros(variables * levels, variables * levels, dtype=torch.float64)
    for part in binned.split(2000):
        hot = torch.nn.functional.one_hot(part, levels).view(len(part), -1).float()
        joint += (hot.T @ hot).double()
    joint = joint.view(variables, levels, variables, levels) / samples
    single = torch.stack([joint[v, :, v].diagonal() for v in range(variables)])
    found = torch.empty(variables, variables, dtype=torch.float64)
    entropy = -torch.special.xlogy(single, single).sum(1)
    for v in range(variables):
        found[v] = entropy[v] + entropy + torch.special.xlogy(joint[v], joint[v]).sum((0, 2))
    return found.numpy()


def spanning_tree(weights: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """Returns the edges of the maximum spanning tree (Prim 1957); among equals the lower variables win."""
    count = len(weights)
    best, above = weights[0].copy(), np.zeros(count, np.int64)
    inside = np.zeros(count, bool)
    inside[0] = True
    edges = []
    for _ in range(count - 1):
        chosen = int(np.where(inside, -np.inf, best).argmax())
        edges.append((int(above[chosen]), chosen))
        inside[chosen] = True
        better = ~inside & (weights[chosen] > best)
        best[better], above[better] = weights[chosen][better], chosen
    return edges


def rooted_at_centre(edges: Sequence[tuple[int, int]]) -> VariableTree:
    """Returns the tree of some edges whose root makes it least high: what is left when leaves are taken away."""
    count = len(edges) + 1
    near: list[set[int]] = [set() for _ in range(count)]
    for one, other in edges:
        near[one].add(other)
        near[other].add(one)
    left, degree = set(range(count)), [len(each) for each in near]
    while len(left) > 2:
        leaves = [variable for variable in left if degree[variable] == 1]
        for leaf in leaves:
            left.remove(leaf)
            for other in near[leaf]:
                degree[other] -= 1
    parents = [-1] * count
    stack = [(min(left), -1)]
    while stack:
        variable, parent = stack.pop()
        parents[variable] = parent
        stack += [(other, variable) for other in sorted(near[variable]) if other != parent]
    return VariableTree(tuple(parents))
