"""The planner of a run: brings the gate, the sources, the acceptance model and the cost model together."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from typing import Any

from outlay.decode.draft.auto.acceptance import Mean
from outlay.decode.draft.auto.candidates import Candidates
from outlay.decode.draft.auto.config import AutoConfig
from outlay.decode.draft.auto.experience import Experience
from outlay.decode.draft.auto.gate import Arm, Gate, TrialCost
from outlay.decode.draft.auto.plan import Plan, Shadows
from outlay.decode.draft.auto.sources import DraftModelSource, LookupSource, TableSource
from outlay.engine.request import Request
from outlay.engine.tree_run import TreeRun
from outlay.speculation.ngrams import NgramTable
from outlay.speculation.rounds import DraftLimits


class Planner:
    """One run's. It plans a round, and learns from what was committed."""

    def __init__(
        self, run: TreeRun, config: AutoConfig, nodes: int, *, draft: bool, lookup: bool, table: NgramTable | None
    ) -> None:
        arms = [Arm.PLAIN]
        if lookup or table is not None:
            arms.append(Arm.TEXT)
        if draft and run.draft is not None:
            arms.append(Arm.DRAFT)
        model = run.draft.model.fingerprint if Arm.DRAFT in arms and run.draft is not None else ""
        key = "auto", math.ceil(run.options.sampling.temperature), model, *arms, config
        self._run, self._config, self._nodes = run, config, nodes
        self._known: Experience = run.shared_state(key, lambda: Experience(run, arms, config))
        self._known.update(run)
        acceptance = self._known.acceptance
        self._text: list[LookupSource | TableSource] = []
        if lookup:
            self._text.append(LookupSource(run, acceptance, config))
        if table is not None:
            self._text.append(TableSource(run, table, acceptance, config))
        self._draft = DraftModelSource(run, acceptance, config) if Arm.DRAFT in arms else None
        self._rows = 1.0  # of each run in the last pass
        self._tokens = Mean(1.0, config.window)  # of a round
        self._ended: float | None = None  # when the last round did
        self._shadows = Shadows()

    def plan(self) -> Generator[Request, Any, Plan]:
        """Returns what to draft in this round."""
        report = self._run.target.last_pass
        gate = self._known.gate(self._run.target.runs)
        arm = gate.choose(report.number, self._trial_cost)
        limits = DraftLimits(self._nodes, self._nodes).within(self._run)
        if arm is Arm.PLAIN or limits.max_depth == 0:
            if self._run.target.runs == 1 and len(self._run.tokens) < self._config.trial:
                self._plan_shadow(limits, gate)
            return Plan(arm, self._cost(0))
        price = self._price(gate, limits.max_nodes)
        plan = self._text_plan(arm, limits, price)
        if arm is Arm.DRAFT and plan.tokens < 2:  # where the text promises a token it is enough
            yield from self._ask(plan, limits, price, gate)
        return plan

    def learn(self, plan: Plan, committed: Sequence[int]) -> None:
        """Takes in what a round gave."""
        report, now = self._run.target.last_pass, time.perf_counter()
        gate = self._known.gate(self._run.target.runs)
        self._run.count(expected_tokens=plan.tokens, expected_seconds=plan.seconds)
        self._tokens.observe(len(committed))
        for accepted in self._shadows.settle(self._run.tokens):
            gate.observe_shadow({Arm.TEXT: accepted})
        if plan.candidates is not None:
            plan.candidates.learn(committed)
        most = 1 + (len(plan.tree) if report.runs == 1 else self._nodes)
        seconds = None
        if report.rows <= report.runs * most:  # else the pass read a prompt as well
            self._rows = report.rows / report.runs
            self._known.target.observe(report, self._run.tip.position)
            seconds = None if self._ended is None else now - self._ended
        gate.observe(plan.arm, plan.added(committed), seconds)
        self._ended = now

    def _text_plan(self, arm: Arm, limits: DraftLimits, price: Sequence[float]) -> Plan:
        candidates = Candidates(self._config.min_probability)
        for source in self._text:
            source.add(candidates, limits.max_nodes, limits.max_depth)
        tree, expected = candidates.choose(price, limits.max_depth)
        return Plan(arm, self._cost(len(tree)), 1 + expected, tree, tree, candidates)

    def _ask(
        self, plan: Plan, limits: DraftLimits, price: Sequence[float], gate: Gate
    ) -> Generator[Request, Any, None]:
        """Plans anew with what the draft adds; not where even a perfect draft would not pay."""
        source, candidates, seat = self._draft, plan.candidates, self._run.draft
        assert source is not None
        assert candidates is not None
        assert seat is not None
        draft_time = self._known.draft
        assert draft_time is not None
        rate = self._rate(gate)
        seconds = draft_time(source.drafter.ahead + self._tokens.value) / self._run.target.runs
        most = max(nodes - cost for nodes, cost in enumerate(price))
        if most <= rate * seconds or not source.drafter.sync():
            return
        yield from source.add(candidates, limits.max_nodes, limits.max_depth, rate * seconds + price[1])
        draft_time.observe(seat.last_pass)
        plan.tree, expected = candidates.choose(price, limits.max_depth)
        plan.tokens, plan.seconds = 1 + expected, self._cost(len(plan.tree)) + seconds
        self._run.count(asked=1)

    def _plan_shadow(self, limits: DraftLimits, gate: Gate) -> None:
        """Plans what is not drafted at a text's beginning: the text will show what it would have given."""
        if not limits.max_depth or not self._text:
            return
        if not self._run.tokens:
            gate.fade(Arm.TEXT)
        plan = self._text_plan(Arm.TEXT, limits, self._price(gate, limits.max_nodes))
        self._shadows.add(len(self._run.tokens), plan)
        self._ended = None

    def _rate(self, gate: Gate) -> float:
        """Returns the tokens a second that all runs in a pass make together at present."""
        return self._run.target.runs * max(gate.rate(gate.best), 1 / self._cost(0))

    def _price(self, gate: Gate, nodes: int) -> list[float]:
        """Returns what 0, 1, ... nodes cost, in tokens."""
        rate = self._rate(gate)
        rows = 1 + (self._run.target.runs - 1) * self._rows
        return [rate * seconds for seconds in self._known.target.marginal(rows, nodes, self._run.tip.position)]

    def _cost(self, nodes: int) -> float:
        """Returns the seconds of a pass with some nodes of this run, beside the rows of others."""
        return self._known.target(1 + nodes + (self._run.target.runs - 1) * self._rows, self._run.tip.position)

    def _trial_cost(self, arm: Arm) -> TrialCost:
        """Returns what a trial takes: each run's draft first reads what it has not read of its text, and all runs wait
        for it; a round to which it adds nothing takes one pass of it more, since nothing is drafted then.
        """
        time, source, runs = self._known.draft, self._draft, self._run.target.runs
        if arm is not Arm.DRAFT or time is None or source is None:
            return TrialCost()
        return TrialCost(time(source.drafter.behind) * runs**2, time((1 + source.drafter.ahead) * runs) * runs)
