"""What a method may ask the engine for, and who serves it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from outlay.budget import Account, Ledger
from outlay.tree.canvas import Row

Stage = Literal["now", "job", "draft", "pass"]
"""When in a tick a worker is called.

"now": quick checks and functions, called again and again within the tick, for at most 20 ms, while their runs go on.
"job": slow work elsewhere, in threads and processes: `advance` starts it and collects what has ended, and never blocks.
"draft": passes of draft models, so that a run that drafts takes part in the target's pass of the same tick.
"pass": passes of all other models.
"""


@dataclass(eq=False)
class Request:
    """A piece of work that a run waits for. Its worker sets `done` and a `result`, an `error`, or `over_budget`.

    Each kind of work is a subclass with a worker of its own, which serves all requests of one tick together.
    """

    account: Account = field(repr=False)
    """Who pays: the ledger that is charged and the budget that must allow it."""

    worker: Worker = field(repr=False)
    """Who serves this request."""

    done: bool = field(default=False, init=False)
    result: Any = field(default=None, init=False)
    error: BaseException | None = field(default=None, init=False)
    over_budget: str = field(default="", init=False)
    """The cap that its cost is above, if any."""

    def finish(self, result: Any) -> None:
        """Ends the request with a result, which is sent to the method that asked."""
        self.result, self.done = result, True

    def fail(self, error: BaseException) -> None:
        """Ends the request with an error, with which the run that asked fails."""
        self.error, self.done = error, True

    def refuse(self, cap: str) -> None:
        """Ends the request because its cost is above what the budget leaves of the entry `cap`."""
        self.over_budget, self.done = cap, True


class PassReport(NamedTuple):
    """What a forward pass was: the `number` counts the model's passes, `rows` its positions, `runs` those that shared
    it, `seconds` its wall time, `cache_bytes` the size of the KV cache after it."""

    number: int
    rows: int
    runs: int
    seconds: float
    cache_bytes: int


class InputsRead(NamedTuple):
    """A pass of an encoder or a vision tower, and the rows of inputs that it read for each account."""

    report: PassReport
    rows: Mapping[Account, int]


class Served(NamedTuple):
    """What a worker did in one step: the passes over inputs, then the pass, and what it computed for each account."""

    report: PassReport
    nodes: Mapping[Account, Sequence[Row]]
    read: Sequence[InputsRead] = ()


class Worker(ABC):
    """Serves requests: each call of `advance` does one batched step for all of them, and finishes those that it can.

    Whatever `advance` raises fails the runs that asked, and no other.
    """

    role: str
    """What the worker is to a run: "target", "draft", "score", "side", or a name of its own."""

    stage: Stage
    """When in a tick this worker is called."""

    ledger: Ledger
    """What the worker did for all runs: the sum of what it charged them."""

    @abstractmethod
    def advance(self, requests: Sequence[Any]) -> Served | None:
        """Moves the requests on by one step. Returns what was done, None where no pass took place."""

    def abandon(self, requests: Sequence[Any]) -> None:  # noqa: B027 - most workers keep nothing of a request
        """Forgets requests that are not done: the run that asked has ended."""

    def spare(self) -> bool:
        """Does a piece of work of its own, when the engine has time for it; tells whether there was any.

        A piece is a few passes long at most, for all others wait for it.
        """
        return False

    def close(self) -> None:  # noqa: B027 - most workers hold nothing
        """Gives back what the worker holds. It is not asked again."""
