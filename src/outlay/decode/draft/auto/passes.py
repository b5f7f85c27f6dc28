"""What the passes of a model take at present: measured costs, times the slowdown of the moment."""

from __future__ import annotations

import math

from outlay.decode.draft.auto.acceptance import Mean
from outlay.engine.request import PassReport
from outlay.speculation.costs import PassCosts


class PassTime:
    """The seconds of a model's passes. The slowdown is a geometric mean: a pause elsewhere hardly moves it."""

    def __init__(self, costs: PassCosts, window: float) -> None:
        self._costs, self._window = costs, window
        self._log_slowdown = Mean(0.0, window)

    def use(self, costs: PassCosts) -> None:
        """Goes on with other costs, by which the slowdown is learned anew."""
        if costs != self._costs:
            self._costs, self._log_slowdown = costs, Mean(0.0, self._window)

    def __call__(self, rows: float, context: float = 0.0) -> float:
        """Returns the seconds of a pass over some rows, each after `context` tokens."""
        return self._slowdown * self._costs(rows, context)

    def marginal(self, rows: float, nodes: int, context: float) -> list[float]:
        """Returns the seconds that 0, 1, ..., `nodes` further rows take in a pass over `rows`."""
        slowdown = self._slowdown
        return [slowdown * seconds for seconds in self._costs.marginal(rows, nodes, context)]

    def observe(self, report: PassReport, context: float = 0.0) -> None:
        """Takes in what a pass took."""
        if report.seconds > 0:
            self._log_slowdown.observe(math.log(report.seconds / self._costs(report.rows, context)))

    @property
    def _slowdown(self) -> float:
        return math.exp(self._log_slowdown.value)
