"""A round of speculative decoding: a tree is drafted, one target pass verifies it, and the accepted path is committed.

    tree = yield from self.draft(run, drafter, limits)
    yield from self.verify(run, tree, drafter)

`SpeculativeMethod` is that loop: a method says how it drafts and how it accepts. `verify_tree` accepts node by node,
from the root down; `verify_by_path` takes any rule. Under a constraint, `steered` cuts what it forbids before the
target sees it and drafts what it forces. A text is lossless as long as the rule returns tokens that are
distributed as the target model's own, whatever was drafted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from outlay.budget import ACCEPTED, VERIFIED
from outlay.constrain import State
from outlay.engine.method import Method, Work
from outlay.engine.request import Request
from outlay.engine.sampling import draw
from outlay.engine.submission import Submission
from outlay.engine.tree_run import Allowed, TreeRun
from outlay.errors import UsageError
from outlay.kernels import Top
from outlay.tree.token_tree import Node

ROOT = -1  # the index of the text's end, whose children are the first drafted tokens
FORCED = "forced"  # the origin of tokens that a constraint forces
DRAFT_STREAM = 1  # the random stream of drafts; 0 is the text's own
ORDER_STREAM = 2  # the random stream of the order in which equal drafts are verified

# (target_probs [vocab], draft_probs [vocab] or None, drafted tokens in order, random numbers) -> token
Accept = Callable[[Tensor, Tensor | None, Sequence[int], torch.Generator], int]
# (the tip and the planted nodes, their logits [nodes, vocab]) -> the accepted path and the token after it
PathRule = Callable[[Sequence[Node], Tensor], tuple[list[int], int]]


@dataclass
class DraftTree:
    """Drafted tokens with their parents, before the target model has scored them.

    Siblings stand in the order in which they were drafted, which acceptance rules depend on. A token that was drafted
    several times after the same text is one node that counts its `copies`. `parents[i]` is the index of what node i
    follows: `ROOT` or a smaller index. `draft_probs[i]` is the distribution, float32 [vocab], that the children of i
    were drawn from; the children of a node without one were chosen, not drawn.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    copies: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    draft_probs: dict[int, Tensor] = field(default_factory=dict)
    _children: dict[int, dict[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depth(self) -> int:
        """How many tokens the longest path has."""
        return max(self.depths, default=0)

    def add(self, parent: int, token: int, origin: str) -> int:
        """Returns the node of `token` after `parent`: a new one, or the one that is there with a copy more."""
        siblings = self._children.setdefault(parent, {})
        if token in siblings:
            self.copies[siblings[token]] += 1
            return siblings[token]
        index = siblings[token] = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.origins.append(origin)
        self.copies.append(1)
        self.depths.append(1 if parent == ROOT else self.depths[parent] + 1)
        return index

    def add_chain(self, tokens: Sequence[int], origin: str, parent: int = ROOT) -> None:
        """Adds `tokens`, one after the other."""
        for token in tokens:
            parent = self.add(parent, token, origin)

    def child(self, parent: int, token: int) -> int | None:
        """Returns the node of `token` after `parent`, if it was drafted."""
        return self._children.get(parent, {}).get(token)

    def children(self, parent: int) -> list[int]:
        """Returns what was drafted after `parent`, in order."""
        return list(self._children.get(parent, {}).values())

    def follow(self, tokens: Sequence[int]) -> list[int]:
        """Returns the nodes that `tokens` lead down, as far as they were drafted."""
        nodes, at = [], ROOT
        for token in tokens:
            child = self.child(at, token)
            if child is None:
                break
            nodes.append(child)
            at = child
        return nodes

    def path(self, node: int) -> list[int]:
        """Returns the nodes from the first one down to `node`."""
        nodes = []
        while node != ROOT:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def path_tokens(self, node: int) -> list[int]:
        """Returns the tokens from the first one down to `node`."""
        return [self.tokens[at] for at in self.path(node)]

    def cut(self, limits: DraftLimits) -> DraftTree:
        """Returns the tree without what lies too deep and, of the rest, with the first `max_nodes` nodes.

        A tree that is cut this way is one that could have been drafted: whether a node stays does not depend on which
        token it is.
        """
        if len(self) <= limits.max_nodes and self.depth <= limits.max_depth:
            return self
        smaller = DraftTree()
        places = {ROOT: ROOT}
        for index, parent in enumerate(self.parents):
            if self.depths[index] <= limits.max_depth and parent in places and len(smaller) < limits.max_nodes:
                places[index] = smaller.add(places[parent], self.tokens[index], self.origins[index])
                smaller.copies[places[index]] = self.copies[index]
        smaller.draft_probs = {places[node]: probs for node, probs in self.draft_probs.items() if node in places}
        return smaller


class DraftLimits(NamedTuple):
    """How much a round may draft."""

    max_nodes: int
    max_depth: int

    def within(self, run: TreeRun) -> DraftLimits:
        """Returns the limits that the run leaves: nodes by its budget, depth by the tokens that it may still write."""
        nodes = max(0, int(min(run.left("target_tokens") - 1, run.left("drafted"), float(self.max_nodes))))
        depth = min(self.max_depth, run.max_tokens - len(run.tokens) - 1, nodes, run.left("accepted"))
        return DraftLimits(nodes, max(0, int(depth)))


class TopTokens(NamedTuple):
    """The most probable tokens after some texts: `tokens` int64 and `logprobs` float32, both [texts, k], descending."""

    tokens: Tensor
    logprobs: Tensor


Drafting = Generator[Request, Any, DraftTree]
Verification = Generator[Request, Any, list[int]]  # returns the accepted path, indices of drafted nodes


class Attachments:
    """Adds nodes of its own to a target pass, and is told what they gave. By default it adds none."""

    wanted_topk = 0  # how many of the largest logits of each added node are needed where no distribution is
    needs_logits = False  # whether all logits of the pass are needed

    def attach(self, tree: DraftTree, nodes: Sequence[Node]) -> list[Node]:
        """Returns further nodes for the target pass over a drafted tree, whose planted nodes are `nodes`."""
        return []

    def observe(self, path: Sequence[int], rows: Tensor | Top) -> None:
        """Takes in which drafted nodes were accepted, and the logits, or the largest of them, of what was attached."""


class Proposer(Attachments, ABC):
    """Proposes tokens without a distribution. `name` is the origin of its tokens."""

    name: str

    @abstractmethod
    def propose(self, limits: DraftLimits) -> DraftTree:
        """Returns a tree after what the run has committed."""


class Drafter(Attachments, ABC):
    """Has a distribution after any text, from which trees are drawn. `name` is the origin of its tokens."""

    name: str

    @property
    def max_depth(self) -> int | None:
        """The depth that it can draft to in this round (None: any)."""
        return None

    @abstractmethod
    def sync(self) -> bool:
        """Catches up with what the run has committed; tells whether it can draft in this round."""

    @abstractmethod
    def topk(self, tree: DraftTree, places: Sequence[int], k: int) -> Generator[Request, Any, TopTokens]:
        """Returns the k most probable tokens after each of `places` (`ROOT`: the text's end), before temperature."""

    @abstractmethod
    def probs(self, tree: DraftTree, places: Sequence[int]) -> Generator[Request, Any, Tensor]:
        """Returns the distribution after each of `places`, float32 [places, vocab], as it is sampled from."""


class SpeculativeMethod(Method):
    """Base of the methods that draft with whatever the submission gives as a draft."""

    @property
    @abstractmethod
    def limits(self) -> DraftLimits:
        """The most that a round drafts."""

    @abstractmethod
    def draft(self, run: TreeRun, drafter: Drafter, limits: DraftLimits) -> Drafting:
        """Asks the drafter for what it takes and returns the drafted tree."""

    @abstractmethod
    def verify(self, run: TreeRun, tree: DraftTree, attachments: Attachments) -> Verification:
        """Asks for a target pass over a drafted tree, and commits what is accepted and one more token."""

    def check(self, submission: Submission) -> None:
        if submission.draft is None:
            raise UsageError(
                f"{self.about.name} needs a draft: a small model of the same tokens, or lookup, table, ppd, self:int4 "
                "or self:skip; or train a head, which is then found by itself: "
                f"`outlay train draft --model {submission.model.name}`"
            )

    def decode(self, run: TreeRun) -> Work:
        assert run.submission.draft is not None, "checked before the run started"
        drafter: Drafter | Proposer = run.submission.draft.drafter(run)
        while True:
            limits = self.limits.within(run)
            tree = steered(run, (yield from self._drafted(run, drafter, limits)), limits)
            yield from self.verify(run, tree, drafter)

    def _drafted(self, run: TreeRun, drafter: Drafter | Proposer, limits: DraftLimits) -> Drafting:
        if limits.max_depth == 0:
            return DraftTree()
        if isinstance(drafter, Proposer):
            return drafter.propose(limits)
        if not drafter.sync():
            return DraftTree()
        if drafter.max_depth is not None:
            limits = limits._replace(max_depth=min(limits.max_depth, drafter.max_depth))
        return (yield from self.draft(run, drafter, limits))


def steered(run: TreeRun, tree: DraftTree, limits: DraftLimits) -> DraftTree:
    """Returns a drafted tree without what the run's constraint forbids, and with what it forces behind its leaves.

    Tokens that were drawn are never cut, as they were drawn from a masked distribution; so a tree that an acceptance
    rule takes stays one. A forced token counts as drawn from a distribution of one token.

    Args:
        run: The run; a tree without a constraint is returned as it is.
        tree: What was drafted after its tip.
        limits: How much the round may draft, forced tokens included.
    """
    if run.allowed is None:
        return tree
    fitted, places = DraftTree(), {ROOT: ROOT}
    state = run.allowed.state(run.tip)
    states = {} if state is None else {ROOT: (state, tuple(run.tokens))}
    for index, parent in enumerate(tree.parents):
        at, token = places.get(parent), tree.tokens[index]
        if at is None or at not in states:
            continue
        before, text = states[at]
        ends = token in run.eos_token_ids
        after = None if ends else run.allowed.after(before, text, token)
        if after is None and not (ends and run.allowed.may_end(before, text)):
            continue
        places[index] = fitted.add(at, token, tree.origins[index])
        fitted.copies[places[index]] = tree.copies[index]
        if after is not None:
            states[places[index]] = after, (*text, token)
    drawn = {places[node]: probs for node, probs in tree.draft_probs.items() if node in places}
    fitted.draft_probs = {at: probs for at, probs in drawn.items() if fitted.children(at)}
    leaves = [at for at in states if not fitted.children(at)]
    for at in leaves:
        _force(run.allowed, fitted, at, states[at], limits, run.model.decoder.config.vocab_size)
    return fitted


def _force(
    allowed: Allowed, tree: DraftTree, at: int, begin: tuple[State, tuple[int, ...]], limits: DraftLimits, vocab: int
) -> None:
    """Adds the tokens that must follow a leaf, as far as the limits go."""
    state, text = begin
    drawn = bool(tree.draft_probs)
    for token in allowed.forced(state, text):
        depth = 1 if at == ROOT else tree.depths[at] + 1
        if len(tree) >= limits.max_nodes or depth > limits.max_depth:
            return
        if drawn:
            tree.draft_probs[at] = torch.zeros(vocab).index_fill_(0, torch.tensor(token), 1.0)
        at = tree.add(at, token, FORCED)


def verify_tree(run: TreeRun, tree: DraftTree, accept: Accept, attachments: Attachments | None = None) -> Verification:
    """Verifies a drafted tree from its root down: at each node, `accept` gives the token after it.

    Where that token was drafted, verification goes on there. Tokens that were chosen, not drawn, are matched with the
    target's own.

    Args:
        run: The run.
        tree: What was drafted after its tip.
        accept: The acceptance rule at one node.
        attachments: What adds nodes of its own to the pass.

    Returns:
        The accepted path: indices of drafted nodes.
    """

    def rule(nodes: Sequence[Node], logits: Tensor) -> tuple[list[int], int]:
        return accepted_path(tree, lambda at: _accept_at(run, tree, at, nodes[at + 1], logits[at + 1], accept))

    return verify_by_path(run, tree, rule, attachments)


def verify_by_path(
    run: TreeRun, tree: DraftTree, rule: PathRule, attachments: Attachments | None = None
) -> Verification:
    """Scores a drafted tree in one target pass, and commits the accepted path and one more token.

    That token is the bonus token where a whole path was accepted, else one from the residual distribution. At
    temperature 0 tokens are matched with the most probable ones, whatever the rule.

    Args:
        run: The run.
        tree: What was drafted after its tip.
        rule: Gives the accepted path and the token after it.
        attachments: What adds nodes of its own to the pass.

    Returns:
        The accepted path: indices of drafted nodes.
    """
    nodes = plant(run, tree)
    extra = attachments.attach(tree, nodes) if attachments is not None else []
    asked = [run.tip, *nodes, *extra]
    rows: Tensor | Top
    if run.sampler.greedy and run.sampler.raw and not (attachments is not None and attachments.needs_logits):
        k = attachments.wanted_topk if attachments is not None and extra else 1
        rows = top = yield run.target.topk(asked, max(1, k))
        most_probable = top.tokens.tolist()
        path, token = accepted_path(tree, lambda at: most_probable[at + 1][0])
    else:
        rows = logits = yield run.target.forward(asked)
        path, token = rule(asked[: 1 + len(nodes)], logits)
    commit_path(run, tree, nodes, path, token)
    if attachments is not None and extra:
        attachments.observe(path, rows_after(rows, 1 + len(nodes)))
    return path


def accepted_path(tree: DraftTree, token_after: Callable[[int], int]) -> tuple[list[int], int]:
    """Goes down the tree as long as the next token was drafted; returns the accepted nodes, and the token that was not.

    `token_after(at)` gives the token after a node, and is asked once for each node of the path.
    """
    at, path = ROOT, list[int]()
    while True:
        token = token_after(at)
        child = tree.child(at, token)
        if child is None:
            return path, token
        path.append(child)
        at = child


def sample_and_match(
    target_probs: Tensor, draft_probs: Tensor | None, drafted: Sequence[int], generator: torch.Generator
) -> int:
    """Draws from `target_probs`; a drafted token is accepted where it is the one drawn.

    It does not look at what was drafted, so the text is the same with any draft and with none.
    """
    return draw(target_probs, generator)


def plant(run: TreeRun, tree: DraftTree) -> list[Node]:
    """Grows the drafted nodes below the tip of the target's tree; returns them in the order of `tree`."""
    return run.tree.extend(tree.parents, tree.tokens, tree.origins)


def commit_path(run: TreeRun, tree: DraftTree, nodes: Sequence[Node], path: Sequence[int], token: int) -> None:
    """Commits the nodes of a path and the token after it, and counts the round."""
    before = len(run.tokens)
    run.accept(nodes[path[-1]] if path else run.tip)
    accepted = len(run.tokens) - before
    counts = {f"{VERIFIED}{depth}": 1.0 for depth in range(1, min(tree.depth, len(path) + 1) + 1)}
    counts |= {f"{ACCEPTED}{depth}": 1.0 for depth in range(1, accepted + 1)}
    run.commit(token)
    run.count(rounds=1, drafted=len(tree), accepted=accepted, **counts)


def rows_after(rows: Tensor | Top, begin: int) -> Tensor | Top:
    """Returns the rows behind the first `begin`."""
    return rows[begin:] if isinstance(rows, Tensor) else Top(rows.tokens[begin:], rows.logits[begin:])


def _accept_at(run: TreeRun, tree: DraftTree, at: int, node: Node, logits: Tensor, accept: Accept) -> int:
    """Returns the token after a node, given the target's logits [vocab] there. Chosen tokens are matched."""
    if run.sampler.greedy or at not in tree.draft_probs:
        return run.sampler.pick(logits, node)
    drafted = [tree.tokens[child] for child in tree.children(at) for _ in range(tree.copies[child])]
    if len(set(drafted)) < len(drafted):
        # Independent draws come in any order; that of a tree, which has equal tokens side by side, would favour them.
        order = torch.randperm(len(drafted), generator=run.random.at(node.position, ORDER_STREAM)).tolist()
        drafted = [drafted[place] for place in order]
    probs = run.sampler.probs(logits, node)
    return accept(probs, tree.draft_probs[at], drafted, run.random.at(node.position, 0))
