"""Speculative decoding: a draft writes a chain of tokens, one target pass scores it, and its beginning is kept.

A drafted token is kept with probability min(1, q/p) of the target's law q and the draft's p, and the first that is not
is replaced by a draw from what p does not cover of q (Leviathan et al. 2023; Chen et al. 2023). Exact: the text is
distributed as the target's own, and at temperature 0 it is greedy's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outlay.engine.method import About, Method, Work
from outlay.engine.run import Run
from outlay.errors import UsageError
from outlay.speculation.drafter import Drafter, Growth
from outlay.speculation.grow import chosen, drawn_independently
from outlay.speculation.round import Room, judge, proposed
from outlay.speculation.sources import drafter_of, require_draft
from outlay.speculation.verify import reject_with_replacement


@dataclass(frozen=True)
class Speculative(Method):
    """Drafts a chain of `depth` tokens a round."""

    depth: int = 4

    about: ClassVar[About] = About(
        name="speculative",
        summary="a drafted chain, kept as far as the target agrees",
        paper="Leviathan et al. 2023, https://arxiv.org/abs/2211.17192",
        family="speculation",
        spends="`depth` draft passes, and `depth` + 1 positions a target pass",
        saves="target passes",
        needs=("draft",),
    )

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UsageError(f"speculative needs a depth of 1 or more, not {self.depth}")

    def check(self, run: Run) -> None:
        require_draft(self, run)

    def decode(self, run: Run) -> Work:
        def grow(drafter: Drafter, room: Room) -> Growth:
            branching = (1,) * self.depth
            if run.sampler.greedy:
                return chosen(drafter, branching, room)
            return drawn_independently(run, drafter, branching, room)

        drafter = drafter_of(run)
        while True:
            tree = yield from proposed(drafter, Room(run, self.depth, self.depth), grow)
            yield from judge(run, tree, reject_with_replacement, drafter)
