"""Recursive speculative decoding: drafted siblings are drawn without replacement, so that none repeats another.

Variant "c" draws a constant number of children at each level by Gumbel-Top-k, variant "s" whole texts by stochastic
beam search, which drops unlikely ones early. Recursive rejection in the order of the draws keeps the target's law: the
text is exact, and at temperature 0 it is greedy's (Jeon et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from outlay.engine.method import About, Method, Work
from outlay.engine.run import Run
from outlay.errors import UsageError
from outlay.speculation.drafter import Drafter, Growth
from outlay.speculation.grow import chosen, chosen_beams, drawn_beams, drawn_without_replacement, tree_size
from outlay.speculation.round import Room, judge, proposed
from outlay.speculation.sources import drafter_of, require_draft
from outlay.speculation.verify import reject_without_replacement


@dataclass(frozen=True)
class RSD(Method):
    """Variant "c" grows `branching[l]` children from each node of level l; variant "s" keeps `width` texts on each of
    `depth` levels. `nodes` caps the tree, whatever its shape."""

    variant: Literal["c", "s"] = "c"
    branching: tuple[int, ...] = (2, 2, 1)
    width: int = 3
    depth: int = 4
    nodes: int | None = None

    about: ClassVar[About] = About(
        name="rsd",
        summary="a drafted tree, siblings drawn without replacement",
        paper="Jeon et al. 2024, https://arxiv.org/abs/2402.14160",
        family="speculation",
        spends="a draft pass a level, and the tree's nodes + 1 positions a target pass",
        saves="target passes, most at low temperatures",
        needs=("draft",),
    )

    def __post_init__(self) -> None:
        if not self.branching or min(self.branching) < 1:
            raise UsageError(f"rsd needs a branching of numbers from 1 on, such as 2x2x1, not {self.branching}")
        for name in ("width", "depth"):
            if getattr(self, name) < 1:
                raise UsageError(f"rsd needs a {name} of 1 or more, not {getattr(self, name)}")
        if self.nodes is not None and self.nodes < 1:
            raise UsageError(f"rsd needs nodes of 1 or more, not {self.nodes}")

    @property
    def size(self) -> int:
        """The most nodes that its tree can have."""
        shape = self.width * self.depth if self.variant == "s" else tree_size(self.branching)
        return shape if self.nodes is None else min(shape, self.nodes)

    def check(self, run: Run) -> None:
        require_draft(self, run)

    def decode(self, run: Run) -> Work:
        drafter = drafter_of(run)
        depth = self.depth if self.variant == "s" else len(self.branching)
        while True:
            room = Room(run, self.size, depth)
            tree = yield from proposed(drafter, room, lambda drafter, room: self._grow(run, drafter, room))
            yield from judge(run, tree, reject_without_replacement, drafter)

    def _grow(self, run: Run, drafter: Drafter, room: Room) -> Growth:
        if self.variant == "s":
            if run.sampler.greedy:
                return chosen_beams(drafter, self.width, self.depth, room)
            return drawn_beams(run, drafter, self.width, self.depth, room)
        if run.sampler.greedy:
            return chosen(drafter, self.branching, room)
        return drawn_without_replacement(run, drafter, self.branching, room)
