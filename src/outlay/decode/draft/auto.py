"""The planner: each round drafts what pays on this machine, in this batch, for this text, or nothing at all.

Proposals come from the text itself (prompt lookup) and from a draft head, if the model has one; each is worth what its
kind has turned out to be worth so far. A round takes the proposals whose chance outweighs the time that they cost, by
measured costs of passes, and asks the head, or a draft model, only where that has paid. Exact: what is drafted is
matched with the target's own tokens, so the text is what greedy or sample write with the same seed, whatever was
planned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from outlay.drafts.cost import costs_of
from outlay.drafts.drafter import Best, ModelDrafter
from outlay.drafts.lookup import ORIGIN, LookupProposer
from outlay.drafts.planner import Average, Calibration, Candidates
from outlay.drafts.round import Room, judge
from outlay.drafts.tree import ROOT, DraftTree
from outlay.drafts.verify import sample_and_match
from outlay.engine.method import About, Method, Request, Work
from outlay.engine.run import Run
from outlay.errors import UsageError

RANKS = (3, 3, 2, 2)  # of each of a head's guesses that are looked at
LONGEST = 6  # tokens of the text's end that are looked up
COPIED = 12  # tokens that are copied from where they stood
SURE = (0.15, 0.3, 0.45, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)  # how sure a match of 1, 2, ... tokens is, at first
EXPLORE = 16  # rounds after which the head is asked again
RECENT = 24.0  # rounds that a run's rate is taken over


@dataclass(frozen=True)
class Auto(Method):
    """Drafts at most `nodes` tokens a round, from the text itself (`lookup`) and a draft head or model (`draft`)."""

    nodes: int = 16
    draft: bool = True
    lookup: bool = True

    about: ClassVar[About] = About(
        name="auto",
        summary="drafts what pays here and now, or nothing",
        paper="",
        family="speculation",
        spends="positions and draft passes where they are worth their time",
        saves="time; it writes what greedy or sample write",
        takes=("draft",),
    )

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise UsageError(f"auto needs nodes of 1 or more, not {self.nodes}")

    def check(self, run: Run) -> None:
        costs_of(run.model)

    def decode(self, run: Run) -> Work:
        planner = _Planner(self, run)
        while True:
            plan = yield from planner.plan()
            before = len(run.tokens)
            yield from judge(run, plan.tree, sample_and_match)
            planner.learn(plan, run.tokens[before:])


@dataclass(frozen=True)
class _Plan:
    """What a round drafts, of which candidates, and what is expected of it."""

    tree: DraftTree
    candidates: Candidates
    tokens: float
    seconds: float


@dataclass
class _Learned:
    """What the runs of one model at one temperature learn together."""

    calibrations: dict[tuple[str, int], Calibration] = field(default_factory=dict)
    gains: dict[int, Average] = field(default_factory=dict)  # what the head added to rounds, by what lookup had found
    slower: Average = field(default_factory=lambda: Average(1.0, 50.0))  # passes, against their measured costs

    def calibration(self, kind: str, level: int) -> Calibration:
        """Returns that of a kind of proposals."""
        return self.calibrations.setdefault((kind, level), Calibration())

    def gain(self, found: float) -> Average:
        """Returns what the head has added where lookup had found so many tokens."""
        return self.gains.setdefault(min(int(2 * found), 3), Average(0.5, 30.0))


class _Planner:
    """One run's."""

    def __init__(self, method: Auto, run: Run) -> None:
        temperature = math.ceil(4 * run.options.sampling.temperature)
        draft = run.draft.worker.model if run.draft is not None and method.draft else None
        key = ("auto", temperature, draft.fingerprint if draft is not None else "")
        self._run, self._nodes = run, method.nodes
        self._learned = run.kept(key, _Learned)
        self._target = costs_of(run.model)
        self._draft = costs_of(draft) if draft is not None else None
        self._drafter = ModelDrafter(run) if draft is not None else None
        self._lookup = LookupProposer(run, LONGEST) if method.lookup else None
        self._tokens, self._seconds = Average(1.0, RECENT), Average(self._cost(1), RECENT)
        self._since, self._unasked = time.perf_counter(), 0

    def plan(self) -> Generator[Request, Any, _Plan]:
        """Returns what to draft in this round."""
        run, room = self._run, Room(self._run, self._nodes, self._nodes)
        candidates, rate = Candidates(), self._rate()
        if room.depth == 0:
            return _Plan(DraftTree(), candidates, 1.0, self._cost(1))
        if self._lookup is not None:
            self._look_up(candidates, self._lookup, room)
        tree, expected, _ = candidates.chosen(self._worth(rate), room.nodes, room.depth)
        drafting = 0.0
        if self._asks(expected, rate):
            before = len(tree), expected
            drafting = yield from self._ask(candidates, room, rate)
            tree, expected, _ = candidates.chosen(self._worth(rate), room.nodes, room.depth)
            rows = self._cost(1 + len(tree)) - self._cost(1 + before[0])
            self._learned.gain(before[1]).observe(expected - before[1] - rate * rows)
            run.count(asked=1)
        return _Plan(tree, candidates, 1 + expected, drafting + self._cost(1 + len(tree)))

    def learn(self, plan: _Plan, decided: Sequence[int]) -> None:
        """Takes in what a round gave."""
        plan.candidates.learn(decided)
        now = time.perf_counter()
        self._tokens.observe(len(decided))
        self._seconds.observe(now - self._since)
        self._since = now
        last = self._run.target.worker.last
        self._learned.slower.observe(last.seconds / self._target(max(last.rows, 1), self._context()))
        self._run.count(expected_tokens=plan.tokens, expected_seconds=plan.seconds)

    def _rate(self) -> float:
        """Returns the tokens a second that are made at present, by all runs that share the passes; no less than without
        drafts.
        """
        runs = max(1, self._run.target.worker.last.runs)
        own = max(self._tokens.value / max(self._seconds.value, 1e-9), 1 / self._cost(1))
        return runs * own

    def _cost(self, rows: int) -> float:
        """Returns the seconds of a pass over so many rows of this run, beside what the others have."""
        last = self._run.target.worker.last
        others = max(0, last.runs - 1) * max(1.0, last.rows / max(last.runs, 1))
        return self._target(rows + others, self._context()) * self._learned.slower.value

    def _worth(self, rate: float) -> Any:
        """Returns the function that gives the chance from which an n-th drafted node pays for its row."""
        return lambda n: rate * (self._cost(1 + n) - self._cost(n))

    def _context(self) -> int:
        return self._run.tip.position + 1

    def _look_up(self, candidates: Candidates, lookup: LookupProposer, room: Room) -> None:
        found = lookup.match()
        if found is None:
            return
        place, length = found
        at = ROOT
        for token in lookup.after(place, min(COPIED, room.depth)):
            level = min(length, len(SURE)) - 1
            at = candidates.add(at, token, ORIGIN, self._learned.calibration(ORIGIN, level), SURE[level])
            length += 1

    def _asks(self, found: float, rate: float) -> bool:
        """Tells whether the draft is asked in this round, where lookup has found so many tokens."""
        if self._drafter is None or self._draft is None or not self._drafter.begin():
            return False
        self._unasked += 1
        cost = self._draft(1 + self._drafter.ahead)
        if self._learned.gain(found).value < rate * cost and self._unasked <= EXPLORE:
            return False
        self._unasked = 0
        return True

    def _ask(self, candidates: Candidates, room: Room, rate: float) -> Generator[Request, Any, float]:
        """Adds what the draft proposes; returns the seconds that this is expected to take."""
        assert self._drafter is not None
        assert self._draft is not None
        least = self._worth(rate)(1)
        if self._drafter.ahead:
            guesses = yield from self._drafter.guesses(min(self._drafter.ahead, room.depth - 1), max(RANKS))
            self._take_guesses(candidates, guesses, least)
            return self._draft(1 + self._drafter.ahead)
        # A draft model goes on with its best token as long as another pass of it is likely to pay.
        tree, at, reach, seconds = DraftTree(), (ROOT, ROOT), 1.0, 0.0
        while tree.depth < room.depth and reach > rate * (self._draft(1) + self._cost(2) - self._cost(1)):
            best = yield from self._drafter.best(tree, [at[0]], RANKS[0])
            calibration = self._learned.calibration(self._drafter.name, min(tree.depth, len(RANKS)))
            pairs = list(zip(best.tokens[0].tolist(), best.logprobs[0].exp().tolist(), strict=True))
            nodes = [candidates.add(at[1], token, self._drafter.name, calibration, sure) for token, sure in pairs]
            at = tree.add(at[0], pairs[0][0], self._drafter.name), nodes[0]
            reach *= calibration.chance(pairs[0][1])
            seconds += self._draft(1)
        return seconds

    def _take_guesses(self, candidates: Candidates, guesses: Best, least: float) -> None:
        """Adds the paths of a head's guesses whose chance is at least `least`."""
        assert self._drafter is not None
        name, tokens, sure = self._drafter.name, guesses.tokens.tolist(), guesses.logprobs.exp().tolist()
        level = [(ROOT, 1.0)]
        for depth, ranks in enumerate(RANKS[: len(tokens)]):
            calibration = self._learned.calibration(name, depth)
            ahead = []
            for parent, reach in level:
                for token, chance in zip(tokens[depth][:ranks], sure[depth][:ranks], strict=True):
                    likely = reach * calibration.chance(chance)
                    if likely >= least:
                        ahead.append((candidates.add(parent, token, name, calibration, chance), likely))
            level = ahead
