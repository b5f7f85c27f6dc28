"""The gate: a bandit that decides for each pass whether to draft, and whether to ask the draft head for it.

Its arms are decoding without drafts, drafting what the text and the table say, and drafting with the head as well. An
arm's rate is the tokens of a round by its seconds on the clock. The fastest arm is played; the others are tried in
short runs, whenever what a trial is expected to lose has been saved up as a share of the time: an arm that is nearly as
fast is tried often, one that is far behind seldom.

A round tells of more arms than the one that was played. With the head it is known what the text's own drafts would have
given, and a round without drafts may plan them to the same end (a shadow round). So an arm's tokens are kept as what it
adds to the arm before it, which scatters less than the tokens of rounds at different places of a text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from outlay.decode.draft.auto.acceptance import Mean
from outlay.decode.draft.auto.config import AutoConfig


class Arm(IntEnum):
    """What a round does; each arm asks more sources than the one before it."""

    PLAIN = 0
    TEXT = 1
    DRAFT = 2


class TrialCost(NamedTuple):
    """What a trial of an arm takes by the cost model: `once`, the seconds before its first round, and `in_vain`, the
    most that a round to which it adds nothing takes longer than a plain one."""

    once: float = 0.0
    in_vain: float = math.inf


class Gate:
    """The bandit of all rounds in passes that about as many runs share."""

    def __init__(self, arms: Sequence[Arm], config: AutoConfig) -> None:
        """`arms` are tried in this order at first."""
        self._config = config
        self._added = {arm: Mean(0.0, config.window) for arm in arms}  # accepted tokens of a round
        self._seconds = {arm: Mean(0.0, config.window) for arm in arms}
        self._played = dict.fromkeys(arms, 0)  # the last pass
        self._arm, self._left, self._index = arms[0], config.first_trial, -1
        self._in_vain = 0  # rounds of this turn in a row to which the arm has added nothing
        self._credit = 0.0  # seconds that trials may lose

    def choose(self, index: int, cost: Callable[[Arm], TrialCost]) -> Arm:
        """Returns the arm of a pass, the same for all runs that share it.

        Args:
            index: The number of the pass.
            cost: Gives what a trial of an arm takes.
        """
        if index != self._index:
            self._index = index
            if self._left <= 0:
                self._take_turn(cost)
            self._played[self._arm] = index
        return self._arm

    def observe(self, arm: Arm, added: Mapping[Arm, int], seconds: float | None) -> None:
        """Takes in what a round gave.

        Args:
            arm: What was played.
            added: Accepted tokens of the arms that are known, beyond those of the arm before.
            seconds: What the round took, None where that tells nothing.
        """
        self.observe_shadow(added)
        if seconds is None:
            return
        if self._seconds[arm].seen:
            lost = self._loss(1 + sum(added.values()), seconds) if arm is not self.best else 0.0
            self._credit += self._config.exploration * seconds - lost
        self._seconds[arm].observe(seconds)
        if arm is self._arm:
            self._left -= 1
            self._in_vain = 0 if added.get(arm) else self._in_vain + 1
            if arm and self._in_vain >= self._config.trial:  # not worth what is left of its turn
                self._left = 0

    def observe_shadow(self, added: Mapping[Arm, int]) -> None:
        """Takes in what a round would have given."""
        for arm in added.keys() & self._added.keys():
            self._added[arm].observe(added[arm])

    def fade(self, arm: Arm) -> None:
        """Lets what is known of an arm's tokens count for less than what a trial will tell."""
        self._added[arm].fade(self._config.trial)

    @property
    def best(self) -> Arm:
        """The fastest arm of those that were played."""
        return max(self._seconds, key=self.rate)

    def rate(self, arm: Arm) -> float:
        """Returns the tokens a second of an arm; 0 before it was played."""
        seconds = self._seconds[arm]
        return self._tokens(arm) / seconds.value if seconds.seen else 0.0

    def _tokens(self, arm: Arm) -> float:
        return 1 + sum(added.value for other, added in self._added.items() if other <= arm)

    def _loss(self, tokens: float, seconds: float) -> float:
        """Returns the seconds that the best arm would have saved."""
        return max(0.0, seconds - tokens / self.rate(self.best))

    def _take_turn(self, cost: Callable[[Arm], TrialCost]) -> None:
        """Begins a trial of the arm that was longest not played, if it can be paid for; else the best one goes on."""
        best = self.best
        if self._arm is not best:
            self._arm, self._left, self._in_vain = best, self._config.trial, 0
        others = [arm for arm in self._played if arm is not best]
        if not others:
            return
        arm = next((arm for arm in others if not self._seconds[arm].seen), min(others, key=self._played.__getitem__))
        first = not self._seconds[arm].seen
        once, in_vain = cost(arm)
        # Its rounds may have been longer before its confidence was calibrated than they would be now.
        lost = 0.0 if first else min(self._loss(self._tokens(arm), self._seconds[arm].value), in_vain)
        if (first or self._left <= 0) and self._config.trial * lost + once <= max(self._credit, 0.0):
            self._arm, self._left, self._in_vain = arm, self._config.trial, 0
            self.fade(arm)
            self._seconds[arm].fade(self._config.trial)
