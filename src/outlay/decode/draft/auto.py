"""The planner: each round drafts what pays on this machine, in this batch, for this text, or nothing at all.

Proposals come from the text itself (prompt lookup), from a table of n-grams of what the model writes, and from a draft
head, where the model has them; each is worth what its kind has turned out to be worth so far. A round takes the
proposals whose chances outweigh the time that they cost, by measured costs, and asks the head, or a draft model, only
where that has paid. Exact: what is drafted is matched with the target's own tokens, so the text is what greedy or
sample write with the same seed, whatever was planned.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, ClassVar, TypeVar

from outlay.engine.method import About, Method, Work
from outlay.engine.request import Request
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.models.load import Model
from outlay.speculation.cost import costs_of
from outlay.speculation.lookup import ORIGIN, LookupProposer
from outlay.speculation.model_drafter import ModelDrafter
from outlay.speculation.ngrams import NgramTable
from outlay.speculation.planner import RECALLED, UNLIKELY, Asking, Average, Calibration, Candidates, Duel, Kept
from outlay.speculation.rounds import ROOT, DraftLimits, DraftTree, sample_and_match, verify_tree
from outlay.speculation.tables import model_table, open_table

Answer = TypeVar("Answer")
TABLE = "table"
RANKS = (3, 3, 2, 2)  # of each of a head's guesses that are looked at
LONGEST = 6  # tokens of the text's end that are looked up
LOOKED = 6  # contexts that are looked for in a table each round
TABLE_RANKS = (3, 2, 1)  # of what followed a context that are looked at, by depth
COUNTED = 4  # times that a context was seen, from which on it makes no difference
DOUBT = 6.0  # times that something else is taken to have followed a context of one token; less after longer ones
COPIED = 12  # tokens that are copied from where they stood
SURE = (0.2, 0.5, 0.6, 0.7, 0.8, 0.87, 0.9, 0.92, 0.93)  # how sure a match of 1, 2, ... tokens is, at first
HOPED = (0.7, 0.5, 0.35, 0.25)  # the chances of a chain of a good draft's, one after the other
TURNS = {True: 12, False: 6}  # rounds with and without drafts that take turns, at least
UNTRIED = 384  # rounds after which drafts that don't seem to pay are tried again
SHARED = 24  # passes that runs share: without drafts, and divided by the runs, with them
LONGEST_TURN, LONGEST_BESIDE = 192, 512  # of the faster kind
READING = 48  # rows more than in the pass before, from which on a pass is taken to read prompts: it tells nothing
REPRICED = 32  # rounds after which the costs of rows are looked at again
HOPED_KEPT = 0.9  # of what is expected, at first
RECENT, LONG = 24.0, 400.0  # rounds that a run's rate, and what it keeps, is taken over; and all runs together


@dataclass(frozen=True)
class Auto(Method):
    """Drafts at most `nodes` tokens a round, from the text itself (`lookup`), a table of n-grams (`table`: a file,
    "default" for that of the model, or "none") and a draft head or model (`draft`).
    """

    nodes: int = 16
    draft: bool = True
    lookup: bool = True
    table: str = "default"

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

    def check(self, submission: Submission) -> None:
        draft = submission.draft
        if draft is not None and draft.model is None:
            raise UsageError(
                "auto takes a draft head or model as its draft; what the text and a table of n-grams say it looks up "
                "by itself (auto:table=FILE for another table)"
            )
        costs_of(submission.model)
        if draft is not None and draft.model is not None and self.draft:
            costs_of(draft.model)
        self.ngrams(submission.model)

    def ngrams(self, model: Model) -> NgramTable | None:
        """Returns the table that is looked in, if any. Raises `UsageError` where it can't be had."""
        return model_table(model) if self.table == "default" else open_table(self.table, model)

    def decode(self, run: TreeRun) -> Work:
        planner = _Planner(self, run)
        while True:
            if not planner.drafts():
                planner.watch()
                run.commit((yield from run.next_token(run.tip)))
                planner.wrote()
                continue
            plan = yield from planner.plan()
            before = len(run.tokens)
            yield from verify_tree(run, plan.tree, sample_and_match)
            planner.learn(plan, run.tokens[before:])


@dataclass(frozen=True)
class _Plan:
    """What a round drafts, of which candidates, and what is expected of it, where `kept` of the chances is believed.
    Where the draft was asked, `without` it this other tree would have been drafted, which costs `cheaper` tokens less.
    """

    tree: DraftTree
    candidates: Candidates
    tokens: float
    seconds: float
    kept: float = 1.0
    asked: Asking | None = None
    without: DraftTree = field(default_factory=DraftTree)
    cheaper: float = 0.0


@dataclass
class _Learned:
    """What the runs of one model at one temperature learn together."""

    calibrations: dict[tuple[str, int], Calibration] = field(default_factory=dict)
    # Whether the draft is asked: where lookup has found little, and much.
    asking: tuple[Asking, Asking] = field(default_factory=lambda: (Asking(), Asking()))
    kept: Kept = field(default_factory=lambda: Kept(HOPED_KEPT, LONG))
    duel: Duel = field(default_factory=lambda: Duel(TURNS, LONGEST_TURN, untried=UNTRIED))
    beside: dict[int, Duel] = field(default_factory=dict)  # beside other runs, by how many these are, in octaves

    def calibration(self, kind: str, level: int) -> Calibration:
        """Returns that of a kind of proposals."""
        return self.calibrations.setdefault((kind, level), Calibration())

    def duel_beside(self, runs: int) -> Duel:
        """Returns that of rounds in passes which so many runs share."""
        octave = runs.bit_length()
        if octave not in self.beside:
            turns = {True: max(1, SHARED >> (octave - 1)), False: SHARED}
            self.beside[octave] = Duel(turns, LONGEST_BESIDE, RECALLED * 2**octave)
        return self.beside[octave]


class _Planner:
    """One run's."""

    def __init__(self, method: Auto, run: TreeRun) -> None:
        temperature = math.ceil(4 * run.options.sampling.temperature)
        draft = run.draft.model if run.draft is not None and method.draft else None
        key = ("auto", temperature, draft.fingerprint if draft is not None else "")
        self._run, self._nodes = run, method.nodes
        self._learned = run.shared_state(key, _Learned)
        self._target = costs_of(run.model)
        self._draft = costs_of(draft) if draft is not None else None
        self._drafter = ModelDrafter(run) if draft is not None else None
        self._lookup = LookupProposer(run, LONGEST) if method.lookup else None
        self._table = method.ngrams(run.model)
        self._rows = 1.0  # of each run in the last pass
        self._tokens, self._seconds = Average(1.0, RECENT), Average(1.0, RECENT)
        self._kept = Kept(self._learned.kept.share, RECENT)
        self._since, self._spent, self._rounds = time.perf_counter(), 0.0, 0
        self._priced, self._one, self._dearer = (0, -1), 0.0, list[float]()
        self._watching = self._watches()
        self._drafting, self._left = not self._watching, self._learned.duel.trial(self._watching)
        self._watched: deque[tuple[int, _Plan]] = deque()  # what was not drafted, and after how many tokens of the text

    def drafts(self) -> bool:
        """Tells whether tokens are drafted in this round. Runs that share passes take their turns together."""
        seat, duel = self._run.target, self._learned.duel
        if seat.runs > 1:
            self._watching = False
            self._watched.clear()
            self._drafting = self._learned.duel_beside(seat.runs).drafts_at(seat.last_pass.number)
        elif self._left == 0 and TURNS[False] and not self._watched:
            if self._watching:
                self._drafting, self._watching = duel.overdue or not duel.slower, False
            else:
                self._watching = not self._drafting and self._watches()
                self._drafting = not self._drafting and not self._watching
            self._left = TURNS[True] if self._watching else duel.turn(self._drafting)
        return self._drafting

    def _watches(self) -> bool:
        """Tells whether drafts are only watched in their next turn. Where it pays to ask the draft they are tried: what
        it would have added can't be known without.
        """
        pays = self._drafter is not None and self._learned.asking[False].pays(self._rate() * self._asking())
        return self._learned.duel.watches and not pays

    def watch(self) -> None:
        """Plans a round that drafts nothing, where drafts are watched: the text will show what it would have given."""
        if not self._watching or self._left == 0:
            return
        began, room = time.perf_counter(), DraftLimits(self._nodes, self._nodes).within(self._run)
        candidates, kept = self._found(room), self._kept.share
        tree, expected = candidates.chosen(self._price(self._rate()), room.max_nodes, room.max_depth, kept)
        self._watched.append((len(self._run.tokens), _Plan(tree, candidates, 1 + expected, 0.0, kept)))
        self._since += time.perf_counter() - began

    def wrote(self) -> None:
        """Takes in a round without drafts."""
        self._reprice()
        self._run.count(rounds=1, expected_tokens=1, expected_seconds=self._one)
        self._round(1)
        self._settle()

    def _round(self, tokens: int) -> float | None:
        """Takes in that a round gave so many tokens; returns its seconds, None where its pass read a prompt as well."""
        seat, now = self._run.target, time.perf_counter()
        rows, runs = seat.last_pass.rows, seat.last_pass.runs
        seconds, self._since = now - self._since, now
        first, self._rounds, self._left = self._rounds == 0, self._rounds + 1, max(0, self._left - 1)
        if first or rows > READING + runs * self._rows:
            return None
        self._rows = max(1.0, rows / runs)
        if runs == 1:
            self._tokens.observe(tokens)
            self._seconds.observe(seconds)
            self._learned.duel.observe(self._drafting, tokens, seconds)
        else:
            self._learned.duel_beside(runs).observe_at(seat.last_pass.number, self._drafting, tokens, seconds)
        return seconds

    def plan(self) -> Generator[Request, Any, _Plan]:
        """Returns what to draft in this round."""
        run, room = self._run, DraftLimits(self._nodes, self._nodes).within(self._run)
        rate, kept = self._rate(), self._kept.share
        candidates, price = self._found(room), self._price(rate)
        if room.max_depth == 0:
            return _Plan(DraftTree(), candidates, 1.0, self._cost(1))
        tree, expected = candidates.chosen(price, room.max_nodes, room.max_depth, kept)
        asking = self._learned.asking[expected > 0.5]
        if not self._asks(asking, rate, price):
            return _Plan(tree, candidates, 1 + expected, self._cost(1 + len(tree)), kept)
        without, began = tree, time.perf_counter()
        seconds = yield from self._ask(candidates, room, rate)
        tree, expected = candidates.chosen(price, room.max_nodes, room.max_depth, kept)
        self._spent = time.perf_counter() - began
        run.count(asked=1)
        cheaper = price(len(tree)) - price(len(without))
        seconds += self._cost(1 + len(tree))
        return _Plan(tree, candidates, 1 + expected, seconds, kept, asking, without, cheaper)

    def _found(self, room: DraftLimits) -> Candidates:
        """Returns what the text and the table propose."""
        # Beside others a useless row costs all of them time: nothing is drafted on hope there.
        candidates = Candidates(careful=self._run.target.runs > 1)
        if self._lookup is not None and room.max_depth:
            self._look_up(candidates, self._lookup, room)
        if self._table is not None and room.max_depth:
            self._look_in(candidates, self._table, room)
        return candidates

    def _settle(self) -> None:
        """Takes in what plans would have given that were watched, as far as the text tells by now."""
        while self._watched:
            begin, plan = self._watched[0]
            decided = self._run.tokens[begin:]
            proposed = plan.candidates.tree
            path = proposed.follow(decided)
            if len(path) == len(decided) and proposed.children(path[-1] if path else ROOT):
                return
            self._watched.popleft()
            taken = len(plan.tree.follow(decided))
            self._learn(plan, decided, taken)
            self._learned.duel.observe_watched(1 + taken)

    def _learn(self, plan: _Plan, decided: Sequence[int], taken: int) -> None:
        plan.candidates.learn(decided)
        for kept in (self._kept, self._learned.kept):
            kept.observe((plan.tokens - 1) / plan.kept, taken)

    def learn(self, plan: _Plan, decided: Sequence[int]) -> None:
        """Takes in what a round gave."""
        self._learn(plan, decided, len(decided) - 1)
        if plan.asked is not None:
            plan.asked.observe(len(decided) - 1 - len(plan.without.follow(decided)) - plan.cheaper)
        seconds = self._round(len(decided))
        if seconds is not None:
            self._target.observe(self._run.target.last_pass.rows, self._context(), seconds - self._spent)
        self._spent = 0.0
        self._run.count(expected_tokens=plan.tokens, expected_seconds=plan.seconds)

    def _rate(self) -> float:
        """Returns the tokens a second that are made at present, by all runs that share the passes; no less than without
        drafts.
        """
        runs, plain = self._run.target.runs, 1 / self._cost(1)
        if runs > 1:
            return runs * max(self._learned.duel_beside(runs).best, plain)
        return max(self._tokens.value / self._seconds.value if self._seconds.seen else plain, plain)

    def _cost(self, rows: int) -> float:
        """Returns the seconds of a pass over so many rows of this run, beside what the others have."""
        return self._target.at_present(rows + self._others(), self._context())

    def _others(self) -> float:
        """Returns how many rows of other runs a pass has."""
        return (self._run.target.runs - 1) * self._rows

    def _price(self, rate: float) -> Callable[[int], float]:
        """Returns the function that gives what n drafted nodes cost, in tokens."""
        self._reprice()
        if not self._dearer:
            self._dearer = self._target.dearer(1 + self._others(), self._nodes, self._context())
        dearer = self._dearer
        return lambda nodes: rate * dearer[nodes]

    def _reprice(self) -> None:
        """Looks at the costs of rows again, now and then, and where other runs came or went."""
        state = self._run.target.runs, self._rounds // REPRICED
        if state != self._priced:
            self._priced, self._one, self._dearer = state, self._cost(1), []

    def _asking(self) -> float:
        """Returns this run's share of the seconds that a pass of the draft takes, which also reads what was written
        since it was last asked.
        """
        assert self._draft is not None
        assert self._drafter is not None
        assert self._run.draft is not None
        rows = self._tokens.value + self._drafter.ahead
        return self._draft.at_present(rows) / max(1, self._run.draft.last_pass.runs)

    def _dear(self) -> float:
        """Returns how many times more than usual the next pass of the draft costs: the first one reads the prompt."""
        assert self._draft is not None
        assert self._drafter is not None
        usual = self._tokens.value + self._drafter.ahead
        return self._draft(max(self._drafter.behind, usual)) / self._draft(usual)

    def _context(self) -> int:
        return self._run.tip.position + 1

    def _look_up(self, candidates: Candidates, lookup: LookupProposer, room: DraftLimits) -> None:
        found = lookup.match()
        if found is None:
            return
        place, length = found
        at, reach = ROOT, 1.0
        for token in lookup.after(place, min(COPIED, room.max_depth)):
            level = min(length, len(SURE)) - 1
            calibration = self._learned.calibration(ORIGIN, level)
            reach *= calibration.chance(SURE[level])
            if reach < UNLIKELY:
                return
            at = candidates.add(at, token, ORIGIN, calibration, SURE[level])
            length += 1

    def _look_in(self, candidates: Candidates, table: NgramTable, room: DraftLimits) -> None:
        """Adds what a table says is likely, the likeliest first."""
        run, longest = self._run, table.order - 1
        text = run.tokens[-longest:]
        if len(text) < longest:
            text = [*run.prompt[len(text) - longest :], *text]
        heap = [(-1.0, 0, ROOT, text)]
        for _ in range(LOOKED):
            if not heap:
                return
            negative, depth, parent, context = heappop(heap)
            length, seen, found = table.backoff(context)
            if not found:
                continue
            calibration = self._learned.calibration(TABLE, longest * min(seen, COUNTED) + length)
            known = seen / (seen + DOUBT / length)
            for token, share in found[: TABLE_RANKS[min(depth, len(TABLE_RANKS) - 1)]]:
                sure = share * known
                reach = -negative * calibration.chance(sure)
                if reach < UNLIKELY:
                    break
                node = candidates.add(parent, token, TABLE, calibration, sure)
                if depth + 1 < room.max_depth:
                    heappush(heap, (-reach, depth + 1, node, [*context[1:], token]))

    def _asks(self, asking: Asking, rate: float, price: Callable[[int], float]) -> bool:
        """Tells whether the draft is asked in this round: never where the best of drafts would not pay."""
        if self._drafter is None:
            return False
        hoped = max(sum(HOPED[:nodes]) - price(nodes) for nodes in range(min(self._nodes, len(HOPED)) + 1))
        spent = rate * self._asking()
        return hoped > spent and asking.asks(spent, self._dear()) and self._drafter.sync()

    def _ask(self, candidates: Candidates, room: DraftLimits, rate: float) -> Generator[Request, Any, float]:
        """Adds what the draft proposes; returns the seconds that this was expected to take."""
        assert self._drafter is not None
        if self._drafter.ahead:
            guesses, seconds = yield from self._timed(
                self._drafter.guesses(min(self._drafter.ahead, room.max_depth - 1), max(RANKS))
            )
            self._take_guesses(candidates, guesses)
            return seconds
        # A draft model goes on with its best token as long as another pass of it is likely to pay.
        tree, at, reach, total = DraftTree(), (ROOT, ROOT), 1.0, 0.0
        step = rate * (self._asking() + self._cost(2) - self._cost(1))
        while tree.depth < room.max_depth and (reach > step or not tree):
            best, seconds = yield from self._timed(self._drafter.topk(tree, [at[0]], RANKS[0]))
            calibration = self._learned.calibration(self._drafter.name, min(tree.depth, len(RANKS)))
            pairs = list(zip(best.tokens[0].tolist(), best.logprobs[0].exp().tolist(), strict=True))
            nodes = [candidates.add(at[1], token, self._drafter.name, calibration, sure) for token, sure in pairs]
            at = tree.add(at[0], pairs[0][0], self._drafter.name), nodes[0]
            reach *= calibration.chance(pairs[0][1])
            total += seconds
        return total

    def _timed(self, asked: Generator[Request, Any, Answer]) -> Generator[Request, Any, tuple[Answer, float]]:
        """Returns what the draft answers and the seconds that this was expected to take; learns what it took."""
        assert self._draft is not None
        assert self._run.draft is not None
        began = time.perf_counter()
        answer = yield from asked
        rows = self._run.draft.last_pass.rows
        expected = self._draft.at_present(rows)
        self._draft.observe(rows, 0.0, time.perf_counter() - began)
        return answer, expected

    def _take_guesses(self, candidates: Candidates, guesses: Sequence[Sequence[tuple[int, float]]]) -> None:
        """Adds the likeliest paths of a head's guesses, at most as many at a depth as a tree has nodes."""
        assert self._drafter is not None
        name, level = self._drafter.name, [(1.0, ROOT)]
        for depth, (ranks, guessed) in enumerate(zip(RANKS, guesses, strict=False)):
            calibration = self._learned.calibration(name, depth)
            chances = [calibration.chance(sure) for _, sure in guessed[:ranks]]
            ahead = [
                (reach * chance, parent, rank)
                for reach, parent in level
                for rank, chance in enumerate(chances)
                if reach * chance >= UNLIKELY
            ]
            level = []
            for likely, parent, rank in sorted(ahead, reverse=True)[: self._nodes]:
                token, sure = guessed[rank]
                level.append((likely, candidates.add(parent, token, name, calibration, sure)))
