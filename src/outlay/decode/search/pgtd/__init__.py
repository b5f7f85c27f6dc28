"""PG-TD, Planning-Guided Transformer Decoding: Monte Carlo tree search over tokens, with finished programs as rewards.

Each rollout walks down a tree of tokens by the model's own probabilities and by the rewards seen below (P-UCB), adds a
token, lets the model finish the program from there, and has the program rated, as by its public tests. What completions
computed is kept: the most probable tokens of every prefix (tree-structure cache) and the program that every prefix
leads to (sequence cache). So a later rollout along a known program needs no pass at all.

Zhang et al., "Planning with Large Language Models for Code Generation", ICLR 2023 (arXiv 2303.05510), Algorithm 1 and
section 4. The caches change no result: with greedy completions the tree is the same without them. The search itself is
a heuristic: with more rollouts its best reward never falls, and it is at least that of the greedy program.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from outlay.decode.search.pgtd.planner import COUNTS, Planner
from outlay.decode.search.pgtd.states import POLICIES, State, back_up, best_child
from outlay.engine.method import About, Method, Work
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError

TURN = 32  # rollouts after which other runs get their turn, a few milliseconds where all programs are known


@dataclass(frozen=True)
class PGTD(Method):
    """Plans over tokens: finished programs and their rewards say which beginnings are worth growing."""

    rollouts: int = 5000
    """Rollouts at most."""
    completions: int = 768
    """Programs that the model finishes at most; known ones don't count."""
    width: int = 3
    """Tokens that are considered after a prefix, the most probable ones."""
    c: float = 4.0
    """The weight of exploration."""
    c_base: float = 10.0
    """With policy=var_p_ucb: the visits after which exploration begins to weigh more."""
    policy: Literal["var_p_ucb", "p_ucb", "ucb"] = "var_p_ucb"
    """How children are chosen: by P-UCB whose weight grows with the visits, by P-UCB with the weight c, or without
    probabilities."""
    beams: int = 1
    """Beams with which a program is finished; 1 is greedy. With more the sequence cache, which is then not exact, is
    off."""
    early_stop: bool = False
    """Whether the search ends with the first program of reward 1, which no later one would replace."""
    returned: int = 4
    """Programs that are returned, the best first; those behind the first are alternatives."""
    caches: bool = True
    """Whether what completions computed is kept; false is for measuring what that saves."""
    kept: int = 8192
    """Tokens whose keys and values the search holds at most; what is dropped is computed again if need be."""

    about: ClassVar[About] = About(
        name="pgtd",
        summary="tree search over tokens, guided by the rewards of finished programs",
        paper="Zhang et al. 2023, arXiv 2303.05510",
        family="search",
        spends="a finished text and a score a rollout, where they aren't known yet",
        saves="positions, against sampling and filtering with as many texts",
        needs=("scorer",),
        exact=False,
        counts=COUNTS,
    )

    def __post_init__(self) -> None:
        for option in ("rollouts", "completions", "width", "beams", "returned", "kept"):
            if getattr(self, option) < 1:
                raise UsageError(f"pgtd needs {option} of 1 or more, not {getattr(self, option)}")
        if self.policy not in POLICIES:
            raise UsageError(f"the policy of pgtd is {', '.join(POLICIES)}, not {self.policy!r}")
        if not (math.isfinite(self.c) and self.c >= 0 and self.c_base > 0):
            raise UsageError(f"pgtd needs c of 0 or more and c_base above 0, not {self.c:g} and {self.c_base:g}")

    def check(self, submission: Submission) -> None:
        vocab = submission.model.decoder.config.vocab_size
        if not submission.greedy:
            raise UsageError("pgtd plans and does not draw tokens; leave temperature at 0")
        if self.width > vocab:
            raise UsageError(f"{submission.model.name} has {vocab} tokens, so pgtd's width is at most that")

    def decode(self, run: TreeRun) -> Work:
        planner = Planner(run, width=self.width, beams=self.beams, caches=self.caches, kept=self.kept)
        yield from planner.rank([planner.root])
        planner.expand(planner.root)
        while self._goes_on(run, planner):
            state = select(planner.root, self)
            if not state.ended and not state.children:
                yield from planner.rank([state])
                planner.expand(state)
            program = yield from planner.finished(state)
            reward = yield from planner.reward(program)
            back_up(state, reward)
            run.count(rollouts=1)
            planner.mark(state)
            if not run.ledger.extras["rollouts"] % TURN:
                yield []  # known programs need no work, and others wait
        found = planner.best_programs(self.returned)
        run.suggest([(run.text_tokens(planner.grown(each)), each.reward or 0.0) for each in found[: self.returned]])
        run.accept(planner.grown(found[0]))

    def _goes_on(self, run: TreeRun, planner: Planner) -> bool:
        """Tells whether there is another rollout; the first one always is."""
        if planner.best is None:
            return True
        spent = run.ledger.extras
        known = spent.get("rollouts", 0) < self.rollouts and spent.get("completions", 0) < self.completions
        left = run.left("rollouts") >= 1 and run.left("completions") >= 1
        return known and left and not (self.early_stop and planner.best.reward == 1)


def select(root: State, method: PGTD) -> State:
    """Walks down by the highest score, to a state that no rollout went through yet or to a finished program.

    Among equals the first child wins, the most probable: all bonuses are 0 at a state that nothing went through yet.
    """
    state = root
    while state.children:
        state = best_child(state, method.c, method.c_base, method.policy)
    return state
