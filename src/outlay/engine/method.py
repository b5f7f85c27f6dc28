"""What a method is: a generator that yields requests for work and is sent their results. It never runs a model
itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from outlay.tree.token_tree import Node

if TYPE_CHECKING:
    from outlay.engine.passes import PassOutput
    from outlay.engine.run import Run, Seat


@dataclass
class Request:
    """A piece of work that a run waits for. The worker sets `result`, or `error`, and `done`.

    What is asked of a model, a reward model, a constraint checker or a test runner is a subclass, and its worker serves
    all the requests of one tick together.
    """

    run: Run = field(repr=False)
    done: bool = field(default=False, init=False)
    result: Any = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)

    @property
    def worker(self) -> Worker:
        """Who serves this request."""
        raise NotImplementedError


class Source(Protocol):
    """What a request gives as its draft if that is no model."""

    def begin(self, run: Run) -> Any:
        """Returns what drafts for one run."""


class Worker(Protocol):
    """Serves requests: each call does one batched step for all of them, and finishes those that it can.

    In a tick those whose `role` is "draft" come before the others.
    """

    role: str

    def advance(self, requests: Sequence[Request]) -> None:
        """Moves the requests on by one step."""


@dataclass
class Forward(Request):
    """Logits of `nodes`: the result is float32 [len(nodes), vocab], in their order; or, with `top`, a `Top` of each
    node's `top` largest, with their log-sum-exp if `lse`; or, where tokens are `named` for each node, their
    `NamedLogprobs`, a list.

    What lies above a node and is not computed yet, such as the prompt, is computed first, in chunks.
    """

    seat: Seat
    nodes: tuple[Node, ...]
    top: int = 0
    lse: bool = False
    named: Sequence[Sequence[int]] = ()
    pending: list[Node] = field(default_factory=list, init=False)
    rows: dict[Node, tuple[PassOutput, int]] = field(default_factory=dict, init=False)

    @property
    def worker(self) -> Worker:
        return self.seat.worker


Work = Generator[Request | list[Request], Any, None]


@dataclass(frozen=True)
class About:
    """A method's entry in the catalogue. `needs` names what a request must give or have, `takes` what it may give, such
    as a "draft"."""

    name: str
    summary: str
    paper: str
    family: str
    spends: str
    saves: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    exact: bool = True


class Method(ABC):
    """Base of all methods. A subclass is a frozen dataclass of its options, with an `about` and a `decode`."""

    about: ClassVar[About]

    @abstractmethod
    def decode(self, run: Run) -> Work:
        """Yields requests and commits tokens until the run is finished; see `outlay.decode.greedy` for the shortest."""

    def check(self, run: Run) -> None:  # noqa: B027 - a hook that most methods leave as it is
        """Raises `UsageError` when the run's options don't fit this method. Called before the run starts."""

    @property
    def label(self) -> str:
        """The name with the options that differ from their defaults, as the command line takes it."""
        options = [
            f"{name}={_written(getattr(self, name))}"
            for name, option in getattr(self, "__dataclass_fields__", {}).items()
            if getattr(self, name) != option.default
        ]
        return self.about.name + (":" + ",".join(options) if options else "")


def _written(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
