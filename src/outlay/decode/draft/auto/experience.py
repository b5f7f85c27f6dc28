"""What the runs of one model at one temperature learn together."""

from __future__ import annotations

from collections.abc import Sequence

from outlay.decode.draft.auto.acceptance import AcceptanceModel
from outlay.decode.draft.auto.config import AutoConfig
from outlay.decode.draft.auto.gate import Arm, Gate
from outlay.decode.draft.auto.passes import PassTime
from outlay.engine.tree_run import TreeRun
from outlay.speculation.costs import costs_of


class Experience:
    """The acceptance model, what passes take, and a gate for each number of runs that share them."""

    def __init__(self, run: TreeRun, arms: Sequence[Arm], config: AutoConfig) -> None:
        self.acceptance = AcceptanceModel(config)
        self.target = PassTime(costs_of(run.model), config.window)
        drafts = Arm.DRAFT in arms and run.draft is not None
        self.draft = PassTime(costs_of(run.draft.model), config.window) if drafts and run.draft is not None else None
        self._arms, self._config = arms, config
        self._gates: dict[int, Gate] = {}

    def update(self, run: TreeRun) -> None:
        """Takes in what was measured of passes since the last run began."""
        self.target.use(costs_of(run.model))
        if self.draft is not None and run.draft is not None:
            self.draft.use(costs_of(run.draft.model))

    def gate(self, runs: int) -> Gate:
        """Returns the gate of passes that so many runs share, to an octave. Alone, the arm that asks the most is tried
        first; beside others the cheapest, since all of them pay for it.
        """
        octave = runs.bit_length()
        if octave not in self._gates:
            self._gates[octave] = Gate(sorted(self._arms, reverse=runs == 1), self._config)
        return self._gates[octave]
