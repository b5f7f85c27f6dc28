"""What a round should draft: the tree that gives the most tokens for its time.

A drafted node is taken with the product of the chances along its path. Each node costs a row of the target pass, and
drafting costs passes of its own. Tokens and seconds are weighed by the rate at which tokens are made: time that a round
spends could have made tokens otherwise, so nodes are worth their rows if their chances add up to more than rate x cost
of the rows (Dinkelbach's method for the greatest ratio). Chances are learned: each kind of proposal tells how sure it
is, and what came of such proposals corrects it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from outlay.speculation.rounds import ROOT, DraftTree

BINS = 12  # of how sure a proposal is
MEMORY = 200.0  # observations of a bin that count; older ones fade
RECALLED = 24.0  # rounds of each kind that a duel looks back at
PRIOR = 6.0  # observations that a proposal's own word counts for
DOUBTS = 2.0  # standard deviations
UNLIKELY = 0.03  # no row is as cheap as a node that is less likely
ADDED = 0.5  # tokens that a draft is taken to add to a round, before it has been asked
ASKED = 64.0  # rounds in which a draft was asked that are looked back at
TRIALS = 6  # rounds in a row in which a draft is tried again, and what was known before then counts for
PATIENCE, MOST_PATIENT = 16, 256  # rounds after which a draft that does not pay is tried again: at first, at most


@dataclass
class Calibration:
    """How often proposals of one kind are right, by how sure they say that they are."""

    trust: float = 1.0  # what a proposal's own word is multiplied by, before anything is known
    tried: list[float] = field(default_factory=lambda: [0.0] * BINS)
    right: list[float] = field(default_factory=lambda: [0.0] * BINS)

    def chance(self, sure: float) -> float:
        """Returns how likely a proposal is right that is `sure`, from 0 to 1."""
        place = _bin(sure)
        return min((self.right[place] + PRIOR * self.trust * sure) / (self.tried[place] + PRIOR), 0.999)

    def least(self, sure: float) -> float:
        """Returns how likely it is at least: what has been tried too seldom to be known counts as `DOUBTS` deviations
        worse.
        """
        chance = self.chance(sure)
        return max(0.0, chance - DOUBTS * math.sqrt(chance * (1 - chance) / (self.tried[_bin(sure)] + PRIOR)))

    def observe(self, sure: float, right: bool) -> None:
        """Learns from a proposal that was tried."""
        place = _bin(sure)
        if self.tried[place] >= MEMORY:
            fade = 1 - 1 / MEMORY
            self.tried[place] *= fade
            self.right[place] *= fade
        self.tried[place] += 1
        self.right[place] += right


def _bin_of(sure: float) -> int:
    """Bins are narrow near 0 and 1, where it matters."""
    logit = math.log(max(sure, 1e-6) / max(1 - sure, 1e-6))
    return min(max(int((logit + 4) * BINS / 8), 0), BINS - 1)


_BIN_OF = [_bin_of(percent / 100) for percent in range(101)]


def _bin(sure: float) -> int:
    return _BIN_OF[int(100 * sure)]


@dataclass
class Proposal:
    """A node that was proposed: its chance of being right after its parent, and what said how sure it was."""

    chance: float
    origin: str
    said: list[tuple[Calibration, float]]


class Candidates:
    """All that is proposed in a round, from any number of sources, as one tree with the chance of each node: where it
    is `careful`, the least that it is likely to be.
    """

    def __init__(self, careful: bool = False) -> None:
        self.tree = DraftTree()
        self._careful = careful
        self.proposals: list[Proposal] = []

    def add(self, parent: int, token: int, origin: str, by: Calibration, sure: float) -> int:
        """Returns the node of `token` after `parent`. A node that several sources propose has the best of their
        chances, and all of them learn from it.
        """
        chance = by.least(sure) if self._careful else by.chance(sure)
        known = self.tree.child(parent, token)
        if known is None:
            self.proposals.append(Proposal(chance, origin, [(by, sure)]))
            return self.tree.add(parent, token, origin)
        proposal = self.proposals[known]
        proposal.said.append((by, sure))
        if chance > proposal.chance:
            proposal.chance, proposal.origin = chance, origin
        return known

    def chosen(
        self, price: Callable[[int], float], most: int, depth: int, kept: float = 1.0
    ) -> tuple[DraftTree, float]:
        """Returns the tree that is expected to give the most for its price, and how many of its nodes are expected to
        be taken, where the share `kept` of the chances is believed. `price(n)` is what n nodes cost, in tokens that the
        time would have made otherwise.

        The likeliest nodes come first, and as many of them are taken as make expected tokens less price the greatest:
        a pass may cost the same over more rows, up to a width.
        """
        at = {ROOT: ROOT}
        order: list[int] = []
        heap: list[tuple[float, int]] = []

        def push(parent: int, reach: float) -> None:
            for child in self.tree.children(parent):
                if self.tree.depths[child] <= depth:
                    heapq.heappush(heap, (-reach * self.proposals[child].chance, child))

        push(ROOT, 1.0)
        expected, best, size = 0.0, (0.0, 0.0), 0
        while heap and len(order) < most:
            negative, node = heapq.heappop(heap)
            if -negative < UNLIKELY:
                break
            order.append(node)
            expected -= negative * kept
            gain = expected - price(len(order))
            if gain > best[0]:
                best, size = (gain, expected), len(order)
            push(node, -negative)
        tree = DraftTree()
        for node in order[:size]:
            at[node] = tree.add(at[self.tree.parents[node]], self.tree.tokens[node], self.proposals[node].origin)
        return tree, best[1]

    def learn(self, decided: Sequence[int]) -> None:
        """Tells all sources what became of their proposals: `decided` are the tokens that followed, drafted or not."""
        path = self.tree.follow(decided)
        for at, token in zip([ROOT, *path], decided, strict=False):
            for child in self.tree.children(at):
                for calibration, sure in self.proposals[child].said:
                    calibration.observe(sure, self.tree.tokens[child] == token)


class Average:
    """A running mean that forgets: the last `memory` observations count; `start` counts for `weight` of them."""

    def __init__(self, start: float, memory: float, weight: float = 0.0) -> None:
        self.value, self._memory, self.seen = start, memory, weight

    def observe(self, value: float) -> None:
        """Takes an observation in."""
        self.seen = min(self.seen + 1, self._memory)
        self.value += (value - self.value) / self.seen

    def fade(self, weight: float) -> None:
        """Lets what has been observed count for so many observations at most."""
        self.seen = min(self.seen, weight)


class Asking:
    """Whether a draft is worth asking: by how many tokens more rounds gave than they would have given without it.

    Once a round is decided it is known what either tree gave, so this is no guess; but it scatters. Where the draft
    seems not to pay, it is tried again after a while, several times in a row, and later and later.
    """

    def __init__(self) -> None:
        self._added = Average(ADDED, ASKED, TRIALS)
        self._trials, self._waited, self._patience = 0, 0, PATIENCE

    def pays(self, price: float) -> bool:
        """Tells whether it has added more than `price`, in tokens."""
        return self._added.value > price

    def asks(self, price: float, dear: float) -> bool:
        """Tells whether to ask in this round, where asking costs `price`, and the first time `dear` times as much."""
        if self.pays(price):
            self._waited, self._patience = 0, PATIENCE
            return True
        if not self._trials:
            self._waited += 1
            if self._waited <= self._patience * max(dear, 1.0):
                return False
            self._waited, self._patience, self._trials = 0, min(2 * self._patience, MOST_PATIENT), TRIALS
            self._added.fade(TRIALS)
        return True

    def observe(self, added: float) -> None:
        """Takes in by how much a round in which it was asked gave more, of what that was worth."""
        self._added.observe(added)
        self._trials = max(0, self._trials - 1)


class Kept:
    """How much of what rounds were expected to give, they gave of late. The best of many guesses are those that were
    guessed too high, and some texts keep less than others.
    """

    def __init__(self, start: float, memory: float) -> None:
        """`start` holds as long as nothing else is known, and again when what was has faded, in `memory` rounds."""
        self._start, self._memory = start, memory
        self._expected = self._given = 0.0

    @property
    def share(self) -> float:
        """Returns the share, which is at most 1."""
        return min(1.0, (self._given + self._start * PRIOR) / (self._expected + PRIOR))

    def observe(self, expected: float, given: float) -> None:
        """Takes in what a round was expected to give, of drafts, and gave."""
        fade = 1 - 1 / self._memory
        self._expected, self._given = fade * self._expected + expected, fade * self._given + given


class Duel:
    """Whether drafting pays at all, by the clock: rounds with and without it take turns, and the slower ones get fewer.

    Costs that are measured while drafting don't tell what decoding without it would take: what lies between passes
    makes the passes themselves slower. What drafts would have given is known without drafting, once the text is
    written: where they have been slower, they are only watched, and tried when they have long not been.
    """

    def __init__(
        self, rounds: Mapping[bool, int], most: int, recalled: float = RECALLED, untried: int | None = None
    ) -> None:
        """`rounds`: how many of each kind, drafting or not, are tried at a time; `most` of the faster kind;
        `recalled`: how many of each are looked back at; `untried`: after how many rounds without them drafts are tried
        again, where watching them doesn't say that they pay (None: they are never only watched).
        """
        self._least, self._most = dict(rounds), most
        self._rounds = dict(rounds)
        self._tokens = {kind: Average(1.0, recalled) for kind in rounds}
        self._seconds = {kind: Average(1.0, recalled) for kind in rounds}
        self._drafting, self._until, self._seen_at = True, 0, -1
        self._drafted, self._plain = 0, 0  # rounds since one without drafts, and with them
        self._untried = untried
        self._dearer = 1.0  # the time of a round with drafts over that of one without, when there last was one

    def observe(self, drafting: bool, tokens: int, seconds: float) -> None:
        """Takes in what a round gave."""
        self._tokens[drafting].observe(tokens)
        self._seconds[drafting].observe(seconds)
        self._drafted, self._plain = (self._drafted + 1, 0) if drafting else (0, self._plain + 1)
        if drafting and self._all_seen:
            self._dearer = self._seconds[True].value / self._seconds[False].value

    def observe_watched(self, tokens: int) -> None:
        """Takes in what a round with drafts would have given, in the time that such rounds took when there were any."""
        self._tokens[True].observe(tokens)
        self._seconds[True].observe(self._dearer * self._seconds[False].value)

    def observe_at(self, clock: int, drafting: bool, tokens: int, seconds: float) -> None:
        """As `observe`, for runs that share rounds: of those without drafts, one tells all."""
        if drafting or clock != self._seen_at:
            self._seen_at = clock
            self.observe(drafting, tokens, seconds)

    @property
    def slower(self) -> bool:
        """Whether rounds with drafts have been slower than those without."""
        return self._all_seen and self.rate(True) < self.rate(False)

    @property
    def watches(self) -> bool:
        """Whether drafts are watched in their next turn, and not tried."""
        return self._untried is not None and self.slower

    @property
    def overdue(self) -> bool:
        """Whether drafts have long not been tried."""
        return self._untried is not None and self._plain >= self._untried

    def trial(self, watching: bool) -> int:
        """Returns how many rounds with drafts, or `watching` them, a new text begins with: a short turn, where drafting
        has been the slower; what is left of a turn of all texts together, where it has been the faster.
        """
        if watching:
            return self._least[True]
        if self.slower:
            return self._shortest(True)
        return max(self._rounds[True] - self._drafted, self._least[True])

    def turn(self, drafting: bool) -> int:
        """Returns how many rounds the next turn of a kind has, now that the other kind had its turn."""
        if self._all_seen:
            faster = self.rate(True) >= self.rate(False)
            self._rounds[faster] = min(2 * self._rounds[faster], self._most)
            self._rounds[not faster] = self._shortest(not faster)
        return self._rounds[drafting]

    def drafts_at(self, clock: int) -> bool:
        """Tells whose turn it is at a time that is counted in rounds, for runs that take their turns together."""
        if clock >= self._until:
            self._drafting = not self._drafting
            self._until = clock + self.turn(self._drafting)
        return self._drafting

    def _shortest(self, drafting: bool) -> int:
        """How many rounds the slower kind gets, which needn't be found out about any more."""
        return min(self._least[drafting], self._least[False])

    @property
    def _all_seen(self) -> bool:
        return all(tokens.seen for tokens in self._tokens.values())

    @property
    def best(self) -> float:
        """The tokens a second of the faster kind, of those that have been seen; 0 before that."""
        return max((self.rate(kind) for kind, tokens in self._tokens.items() if tokens.seen), default=0.0)

    def rate(self, drafting: bool) -> float:
        """Returns the tokens a second of a kind of rounds."""
        return self._tokens[drafting].value / max(self._seconds[drafting].value, 1e-9)
