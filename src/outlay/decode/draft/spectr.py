"""SpecTr: several independent drafts, and K-SEQ, which takes one of them nearly as often as any exact rule can.

`drafts` texts are drawn from the draft model; at each position the tokens of those that agree with the text so far are
candidates, of which K-SEQ takes one with at least 1 - 1/e of the optimal probability (Sun et al. 2023). Exact: the text
is distributed as the target's own, and at temperature 0 it is greedy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from outlay.engine.method import About, Method, Work
from outlay.engine.run import Run
from outlay.errors import UsageError
from outlay.speculation.drafter import Drafter, Growth
from outlay.speculation.grow import chosen_beams, drawn_texts
from outlay.speculation.round import Room, judge, proposed
from outlay.speculation.sources import drafter_of, require_draft
from outlay.speculation.verify import kseq


@dataclass(frozen=True)
class SpecTr(Method):
    """Draws `drafts` texts of `depth` tokens a round. `rho` is K-SEQ's: "star", the least that is valid and the best;
    "k", the number of candidates, which is quick to find; or a number, where it is not below the least."""

    drafts: int = 4
    depth: int = 4
    rho: float | Literal["star", "k"] = "star"

    about: ClassVar[About] = About(
        name="spectr",
        summary="several drafted texts, tokens chosen among them by K-SEQ",
        paper="Sun et al. 2023, https://arxiv.org/abs/2310.15141",
        family="speculation",
        spends="`depth` draft passes over `drafts` rows, and up to `drafts` x `depth` + 1 positions a target pass",
        saves="target passes, most at temperature 1",
        needs=("draft",),
    )

    def __post_init__(self) -> None:
        for name in ("drafts", "depth"):
            if getattr(self, name) < 1:
                raise UsageError(f"spectr needs {name} of 1 or more, not {getattr(self, name)}")
        if not isinstance(self.rho, str) and not 1 <= self.rho <= self.drafts:
            raise UsageError(f"spectr needs a rho from 1 to {self.drafts}, the number of drafts, not {self.rho}")

    def check(self, run: Run) -> None:
        require_draft(self, run)

    def decode(self, run: Run) -> Work:
        def grow(drafter: Drafter, room: Room) -> Growth:
            if run.sampler.greedy:
                return chosen_beams(drafter, self.drafts, self.depth, room)
            return drawn_texts(run, drafter, self.drafts, self.depth, room)

        drafter = drafter_of(run)
        while True:
            tree = yield from proposed(drafter, Room(run, self.drafts * self.depth, self.depth), grow)
            yield from judge(run, tree, self._verify, drafter)

    def _verify(self, q: Tensor, p: Tensor | None, drafted: Sequence[int], generator: torch.Generator) -> int:
        rho = {"star": None, "k": float("inf")}[self.rho] if isinstance(self.rho, str) else self.rho
        return kseq(q, p, drafted, generator, rho)
