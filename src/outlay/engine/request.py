"""What a method may ask the engine for, and who serves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from outlay.budget import Account
from outlay.tree.token_tree import Node

Stage = Literal["draft", "pass"]


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
    error: Exception | None = field(default=None, init=False)
    over_budget: bool = field(default=False, init=False)

    def fail(self, error: Exception) -> None:
        """Ends the request with an error, which is raised in the method that asked."""
        self.error, self.done = error, True

    def refuse(self) -> None:
        """Ends the request because its cost is above what the budget leaves."""
        self.over_budget, self.done = True, True


class PassReport(NamedTuple):
    """What a forward pass was: the `number` counts the model's passes, `rows` its positions, `runs` those that shared
    it, `seconds` its wall time, `cache_bytes` the size of the KV cache after it."""

    number: int
    rows: int
    runs: int
    seconds: float
    cache_bytes: int


class Served(NamedTuple):
    """What a worker did in one step: the pass, and the nodes that it computed for each account."""

    report: PassReport
    nodes: Mapping[Account, Sequence[Node]]


class Worker(Protocol):
    """Serves requests: each call does one batched step for all of them, and finishes those that it can.

    In a tick, workers of the stage "draft" come before those of the stage "pass".
    """

    role: str

    @property
    def stage(self) -> Stage:
        """When in a tick this worker is called."""

    def advance(self, requests: Sequence[Any]) -> Served | None:
        """Moves the requests on by one step. Returns what was done, None where no pass took place."""
