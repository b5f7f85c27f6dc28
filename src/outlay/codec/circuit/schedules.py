"""A circuit as a sequential model: three schedules of the messages that give each variable's distribution.

"tour" visits the tree depth first and keeps a message from above and one from below: 2 (D - 1) products for all D
distributions. "lca" is the paper's: in its order, only the path below the lowest ancestor of all coded variables is
computed anew. "naive" computes everything for each variable, D (D - 1) products.

What is coded has the same bits on every machine and beside any other samples: products are those of `kernels.pack_f32`,
whose rows are the same at any width, and messages are scaled by powers of two.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from outlay import kernels
from outlay.codec.circuit.latent_tree import LatentTree
from outlay.codec.coder import refuse_without_kernels
from outlay.errors import UsageError

Schedule = Literal["tour", "lca", "naive"]
SCHEDULES: tuple[Schedule, ...] = ("tour", "lca", "naive")


@dataclass
class CircuitState:
    """Samples side by side."""

    lanes: int
    place: int = 0
    """How many variables are known."""
    down: dict[int, Tensor] = field(default_factory=dict)
    """Messages from above, float32 [lanes, M]."""
    below: dict[int, Tensor] = field(default_factory=dict)
    """Messages from below, of what is known, float32 [lanes, M]."""
    known: dict[int, Tensor] = field(default_factory=dict)
    """The symbols of known variables, int64 [lanes]."""
    child: dict[int, int] = field(default_factory=dict)
    """Index of the child that a tour visits next."""
    pending: dict[int, list[Tensor]] = field(default_factory=dict)
    """Of a latent whose children a tour visits: products of what is given below those from the first, second, ... on,
    the last all ones."""


class CircuitModel:
    """A circuit as `coder.SequentialModel`. The symbols come in `order`."""

    def __init__(self, circuit: LatentTree, schedule: Schedule = "tour", *, given: Collection[int] = ()) -> None:
        """Packs a circuit's tables.

        Args:
            circuit: The circuit.
            schedule: How its messages are computed.
            given: Variables that are not coded. What is known of them is told to `begin`, and the distributions of the
                others are conditioned on it; of the schedules, only "tour" does so.

        Raises:
            UsageError: For a schedule that there is not, or where the kernels are not available.
        """
        refuse_without_kernels()
        if schedule not in SCHEDULES:
            raise UsageError(f"a schedule is one of {', '.join(SCHEDULES)}, not {schedule!r}")
        if given and schedule != "tour":
            raise UsageError(f"variables can be given to the schedule tour, not to {schedule}")
        self.circuit, self.schedule, self._tree = circuit, schedule, circuit.tree
        self.given = frozenset(given)
        order = circuit.tree.postorder if schedule == "lca" else circuit.tree.preorder
        self.order = tuple(variable for variable in order if variable not in self.given)
        self._children = self._to_be_visited()
        self.sum_evals = 0
        """Products with a table of an edge so far: sum layers of the circuit."""
        edges, leaves = circuit.edges.float(), circuit.leaves.float()
        self._root = circuit.root.float()
        self._downward = [kernels.pack_f32(table.T.contiguous()) for table in edges]
        self._upward = [kernels.pack_f32(table.contiguous()) for table in edges]
        self._tell = [kernels.pack_f32(table.T.contiguous()) for table in leaves]
        self._leaf = leaves.transpose(1, 2).contiguous()  # [D, K, M]
        self._prior = self._without_evidence() if schedule == "lca" else {}
        step: dict[Schedule, Callable[[CircuitState, int], Tensor]] = {
            "tour": self._tour, "lca": self._lca, "naive": self._naive,
        }  # fmt: skip
        self._message = step[schedule]

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the circuit, with the schedule that its bits depend on."""
        return f"{self.circuit.digest.hex()}-{self.schedule}"

    def begin(self, lanes: int, values: Tensor | None = None, known: Tensor | None = None) -> CircuitState:
        """Returns samples of which nothing is known but what is given.

        Args:
            lanes: How many samples there are.
            values: int64 [lanes, D], those of the variables that are given; the others are not looked at.
            known: bool [lanes, D], which of them are known; the others are summed over. None: all.
        """
        state = CircuitState(lanes, down={self._tree.root: self._root.expand(lanes, -1).contiguous()})
        if self.given:
            if values is None:
                raise ValueError("the values of the given variables are missing")
            self._take_given(state, values, torch.ones_like(values, dtype=torch.bool) if known is None else known)
            if self.order and self._tree.root in self.given:
                self._tour_on(state, self._tree.root, state.below[self._tree.root])
        return state

    def next_pmf(self, state: CircuitState) -> Tensor:
        """Returns the weights of the next variable, int32 [lanes, K]."""
        variable = self.order[state.place]
        return whole_weights(self._tell[variable](self._message(state, variable)))

    def push(self, state: CircuitState, symbols: Tensor) -> None:
        """Tells the next variable's values."""
        variable = self.order[state.place]
        state.known[variable] = symbols
        state.place += 1
        if self.schedule == "tour":
            message = self._leaf[variable][symbols]
            if variable in state.below:
                message = scaled(message * state.below[variable])
            self._tour_on(state, variable, message)
        elif self.schedule == "lca":
            message = self._leaf[variable][symbols]
            if variable in state.below:
                message = scaled(message * state.below.pop(variable))
            self._send_up(state, variable, message)

    # "tour": the message from above is ready when the variable is visited

    def _tour(self, state: CircuitState, variable: int) -> Tensor:
        message = state.down[variable]
        if not self.given:
            return message
        message = scaled(message * state.pending[variable][0])
        return scaled(message * state.below[variable]) if variable in state.below else message

    def _tour_on(self, state: CircuitState, variable: int, message: Tensor) -> None:
        """Goes on to the next variable: back up from subtrees that are done, then down into the next one."""
        state.below[variable], state.child[variable] = message, 0
        while True:
            while state.child[variable] == len(self._children[variable]):
                above = self._tree.parents[variable]
                if above < 0:
                    return
                self._send_up(state, variable, state.below.pop(variable))
                del state.down[variable]
                variable = above
            following = self._children[variable][state.child[variable]]
            state.child[variable] += 1
            message = state.down[variable] * state.below[variable]
            if self.given:
                message = scaled(message) * state.pending[variable][state.child[variable]]
            state.down[following] = self._down(following, message)
            if following not in self.given:
                return
            variable = following
            state.child[variable] = 0

    def _to_be_visited(self) -> tuple[tuple[int, ...], ...]:
        """Returns each latent's children, without subtrees of which everything is given."""
        coded = set(self.order)
        for variable in reversed(self._tree.preorder):
            if any(child in coded for child in self._tree.children[variable]):
                coded.add(variable)
        return tuple(tuple(child for child in children if child in coded) for children in self._tree.children)

    def _take_given(self, state: CircuitState, values: Tensor, known: Tensor) -> None:
        """Sends up what is given: `below` has it for a latent's own variable and for subtrees that are not visited."""
        ones = torch.ones(state.lanes, self.circuit.states)
        sent: dict[int, Tensor] = {}
        for variable in reversed(self._tree.preorder):
            own = None
            if variable in self.given:
                leaf = self._leaf[variable][values[:, variable]]
                own = torch.where(known[:, variable, None], leaf, ones)
            visited = self._children[variable]
            for child in self._tree.children[variable]:
                if child in sent and child not in visited:
                    own = sent[child] if own is None else scaled(own * sent[child])
            pending = [ones]
            for child in reversed(visited):
                pending.append(scaled(pending[-1] * sent[child]) if child in sent else pending[-1])
            state.pending[variable] = pending[::-1]
            if own is not None:
                state.below[variable] = own
            if own is not None or any(child in sent for child in visited):
                everything = pending[-1] if own is None else scaled(own * pending[-1])
                sent[variable] = self._up(variable, everything) if self._tree.parents[variable] >= 0 else everything

    # "lca": below the lowest ancestor of all that is known, along the path to the variable

    def _lca(self, state: CircuitState, variable: int) -> Tensor:
        path = self._tree.path(variable)
        first = self._tree.path(self.order[0])
        top = max(depth for depth, (one, other) in enumerate(zip(path, first, strict=False)) if one == other)
        message = self._prior[path[top]].expand(state.lanes, -1)
        for at, following in pairwise(path[top:]):
            message = self._down(following, message * state.below[at] if at in state.below else message)
        return scaled(message * state.below[variable]) if variable in state.below else message.contiguous()

    def _without_evidence(self) -> dict[int, Tensor]:
        """Returns the distribution of each latent where nothing is known, float32 [M]."""
        found = {self._tree.root: self._root}
        for variable in self._tree.preorder[1:]:
            found[variable] = scaled(self._downward[variable](found[self._tree.parents[variable]][None]))[0]
        return found

    # "naive": everything anew

    def _naive(self, state: CircuitState, variable: int) -> Tensor:
        path = self._tree.path(variable)
        on_path = set(path)
        from_below: dict[int, Tensor] = {}
        for each in reversed(self._tree.preorder):
            message = from_below.pop(each, None)
            if each in state.known:
                leaf = self._leaf[each][state.known[each]]
                message = leaf if message is None else scaled(message * leaf)
            if each in on_path:
                from_below[each] = torch.ones(state.lanes, self.circuit.states) if message is None else message
                continue
            ones = torch.ones(state.lanes, self.circuit.states) if message is None else message
            sent, above = self._up(each, ones), self._tree.parents[each]
            from_below[above] = sent if above not in from_below else scaled(from_below[above] * sent)
        message = self._root.expand(state.lanes, -1)
        for at, following in pairwise(path):
            message = self._down(following, message * from_below[at])
        return scaled(message * from_below[variable])

    def _send_up(self, state: CircuitState, variable: int, message: Tensor) -> None:
        above = self._tree.parents[variable]
        if above >= 0:
            sent = self._up(variable, message)
            state.below[above] = scaled(state.below[above] * sent) if above in state.below else sent

    def _up(self, variable: int, message: Tensor) -> Tensor:
        self.sum_evals += 1
        return scaled(self._upward[variable](message))

    def _down(self, variable: int, message: Tensor) -> Tensor:
        self.sum_evals += 1
        return scaled(self._downward[variable](scaled(message)))


def scaled(message: Tensor) -> Tensor:
    """Scales each row of float32 [lanes, M] by a power of two, exactly, so that its largest is from 0.5 to below 1."""
    return message * power_of_two(-torch.frexp(message.amax(1, keepdim=True)).exponent)


def whole_weights(probs: Tensor) -> Tensor:
    """Returns rows float32 [lanes, K] as whole numbers below 2^24, by the power of two that the largest needs."""
    return (probs * power_of_two(24 - torch.frexp(probs.amax(1, keepdim=True)).exponent)).to(torch.int32)


def power_of_two(exponents: Tensor) -> Tensor:
    """Returns 2^n, float32, of whole numbers, made of its bits: a library's power may be wrong in the last one."""
    return ((exponents.clamp(-126, 127) + 127) << 23).to(torch.int32).view(torch.float32)
