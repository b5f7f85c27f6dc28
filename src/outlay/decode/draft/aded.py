"""ADED: drafts from a table of tri-grams that learns from what is decoded, with no draft model and no training.

The table begins with a corpus and is raised by the tokens that were decided, so that it drifts towards the model's own
law; a search over it gives a small tree that balances likely and diverse continuations (Liu et al. 2025, also called
Adaptix). Exact: one token is drawn at each node and matched with the tree, so the text is what greedy or sample write
with the same seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Literal

from outlay.engine.method import About, Method, Work
from outlay.engine.random import mix
from outlay.engine.run import Run
from outlay.errors import UsageError
from outlay.speculation.ngrams import Learned
from outlay.speculation.round import Room, judge
from outlay.speculation.sources import table_of
from outlay.speculation.tree import DraftTree
from outlay.speculation.trigrams import TreeSearch, best_first, follower
from outlay.speculation.verify import sample_and_match


@dataclass(frozen=True)
class ADED(Method):
    """Drafts `num_draft` nodes, at most `depth` + 1 deep, found by `search`.

    `table` is a file of tri-grams, "default" for one of Python's standard library that is made at first use, or "none".
    With `update` "paper" every triple of the last `window` tokens is raised by `delta` before each draft, up to `cap`;
    with "once" each new triple is raised once, by ten times that; with "off" the table learns nothing. `prime_prompt`
    raises each triple of the prompt once by so much (0: as in the paper). What is learned lasts from one prompt to the
    next if `persist`, and fades by `decay` each round.
    """

    table: str = "default"
    search: Literal["best_first", "mcts"] = "best_first"
    num_draft: int = 16
    depth: int = 4
    update: Literal["paper", "once", "off"] = "paper"
    prime_prompt: float = 0.4
    persist: bool = True
    delta: float = 0.04
    cap: float = 3.0
    window: int = 16
    decay: float = 1.0
    iterations: int = 150

    about: ClassVar[About] = About(
        name="aded",
        summary="a tree from a table of tri-grams that learns from what is decoded",
        paper="Liu et al. 2025, https://arxiv.org/abs/2407.12021",
        family="speculation",
        spends="`num_draft` + 1 positions a target pass",
        saves="target passes, most for code and text that repeats itself",
    )

    def __post_init__(self) -> None:
        for name in ("num_draft", "depth", "window", "iterations"):
            if getattr(self, name) < 1:
                raise UsageError(f"aded needs a {name} of 1 or more, not {getattr(self, name)}")
        for name in ("delta", "cap", "prime_prompt"):
            if getattr(self, name) < 0:
                raise UsageError(f"aded needs a {name} of 0 or more, not {getattr(self, name)}")
        if not 0 < self.decay <= 1:
            raise UsageError(f"aded needs a decay above 0 and at most 1, not {self.decay}")

    def check(self, run: Run) -> None:
        table_of(self.table, run)

    def decode(self, run: Run) -> Work:
        learned = run.kept(self, lambda: self._learned(run)) if self.persist else self._learned(run)
        learned.raise_by(self.prime_prompt, run.prompt)
        text, entered = list(run.prompt), len(run.prompt)
        while True:
            text += run.tokens[len(text) - len(run.prompt) :]
            if self.update == "paper":
                learned.raise_by(self.delta, text[-self.window :])
            elif self.update == "once":
                learned.raise_by(10 * self.delta, text[max(0, entered - 2) :])
                entered = len(text)
            learned.fade()
            room = Room(run, self.num_draft, self.depth + 1)
            tree = self._grow(run, learned, text, room) if room.depth and len(text) > 1 else DraftTree()
            yield from judge(run, tree, sample_and_match)

    def _learned(self, run: Run) -> Learned:
        return Learned(table_of(self.table, run), cap=self.cap, decay=self.decay)

    def _grow(self, run: Run, learned: Learned, text: list[int], room: Room) -> DraftTree:
        """Returns a tree behind the last decided token, which no pass has read yet."""
        follow, (a, b) = follower(learned), text[-2:]
        if self.search == "best_first":
            return best_first(follow, a, b, room.nodes, room.depth)
        search = TreeSearch(self.iterations, min(self.depth, room.depth))
        root = search.run(follow, a, b, random.Random(mix(run.options.seed, run.tip.position)))
        return search.tree(root, follow, room.nodes).cut(room.nodes, room.depth)
