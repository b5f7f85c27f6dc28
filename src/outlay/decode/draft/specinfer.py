"""SpecInfer's trees: siblings drawn independently, verified by recursive rejection.

The baseline that trees without repetition are judged against: at low temperatures siblings repeat, and the tree is
wasted (Miao et al. 2024). Exact: the text is distributed as the target's own, and at temperature 0 it is greedy's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outlay.engine.method import About, Method, Work
from outlay.engine.run import Run
from outlay.errors import UsageError
from outlay.speculation.drafter import Drafter, Growth
from outlay.speculation.grow import chosen, drawn_independently, tree_size
from outlay.speculation.round import Room, judge, proposed
from outlay.speculation.sources import drafter_of, require_draft
from outlay.speculation.verify import reject_with_replacement


@dataclass(frozen=True)
class SpecInfer(Method):
    """Draws `branching[l]` children, independently, after each node of level l."""

    branching: tuple[int, ...] = (2, 2, 1)

    about: ClassVar[About] = About(
        name="specinfer",
        summary="a drafted tree, siblings drawn independently",
        paper="Miao et al. 2024, https://arxiv.org/abs/2305.09781",
        family="speculation",
        spends="a draft pass a level, and the tree's nodes + 1 positions a target pass",
        saves="target passes",
        needs=("draft",),
    )

    def __post_init__(self) -> None:
        if not self.branching or min(self.branching) < 1:
            raise UsageError(f"specinfer needs a branching of numbers from 1 on, such as 2x2x1, not {self.branching}")

    def check(self, run: Run) -> None:
        require_draft(self, run)

    def decode(self, run: Run) -> Work:
        def grow(drafter: Drafter, room: Room) -> Growth:
            if run.sampler.greedy:
                return chosen(drafter, self.branching, room)
            return drawn_independently(run, drafter, self.branching, room)

        drafter = drafter_of(run)
        while True:
            tree = yield from proposed(drafter, Room(run, tree_size(self.branching), len(self.branching)), grow)
            yield from judge(run, tree, reject_with_replacement, drafter)
