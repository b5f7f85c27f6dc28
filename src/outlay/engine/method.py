"""What a method is: a generator that yields requests for work and is sent their results. It never runs a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Any, ClassVar

from outlay.about import About as About
from outlay.about import Entry
from outlay.attend.policy import CachePolicy
from outlay.engine.canvas_run import CanvasRun
from outlay.engine.request import Request
from outlay.engine.run import Run
from outlay.engine.seat import Seats
from outlay.engine.session import Session
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.engine.under_policy import refuse_model
from outlay.errors import UsageError

Work = Generator[Request | list[Request], Any, None]


class Method(Entry, ABC):
    """Base of all methods. A subclass is a frozen dataclass of its options, with an `about` and a `decode`."""

    run_type: ClassVar[type[Run]] = TreeRun
    """What the method decodes on; `decode` gets one."""
    cache_policy: ClassVar[CachePolicy | None] = None
    """The cache policy that the method is about, if it is about one."""

    def start(self, session: Session, seats: Seats) -> Run:
        """Returns the run that `decode` gets."""
        return self.run_type(session, seats)

    @abstractmethod
    def decode(self, run: Any) -> Work:
        """Yields requests and commits tokens until the run is finished; see `outlay.decode.greedy` for the shortest."""

    def check(self, submission: Submission) -> None:
        """Raises `UsageError` where the submission doesn't fit this method. Called before the run starts."""


def refuse_misfit(method: Method, submission: Submission) -> None:
    """Raises `UsageError` for a model of the wrong kind, and for a scorer or constraint that a method needs and doesn't
    get, or gets and doesn't take.
    """
    about, model = method.about, submission.model
    if model.writes_canvas and issubclass(method.run_type, TreeRun):
        raise UsageError(
            f"{about.name} writes from left to right, but {model.name} fills masks on a canvas; take a method of the "
            'family "diffusion", such as threshold'
        )
    if not model.writes_canvas and issubclass(method.run_type, CanvasRun):
        raise UsageError(
            f"{about.name} fills masks on a canvas, but {model.name} writes from left to right; take another method, "
            "such as auto"
        )
    for name, given in (("scorer", submission.scorer), ("constraint", submission.constraint)):
        if given is None and name in about.needs:
            raise UsageError(f"{about.name} needs a {name}: give one with {name}=")
        if given is not None and name not in (*about.needs, *about.takes):
            raise UsageError(f"{about.name} takes no {name}; leave {name}= out, or choose a method that takes one")
    if submission.cache is not None:
        _refuse_policy(method, submission, submission.cache)
    if submission.leaves and "tree" not in about.takes:
        raise UsageError(f"{about.name} answers one prompt, not a tree of prompts; hydragen does, or generate_batch")


def _refuse_policy(method: Method, submission: Submission, policy: CachePolicy) -> None:
    """Raises `UsageError` for what does not run under a cache policy."""
    name, model = policy.about.name, submission.model
    if "cache" not in method.about.takes:
        raise UsageError(
            f"{method.about.name} does not run under a cache policy such as {name}; leave cache= out, or choose "
            "greedy, sample, best_of or speculative"
        )
    refuse_model(model, policy)
    draft = None if submission.draft is None else submission.draft.model
    if draft is not None and draft.decoder.reads_hidden_states:
        raise UsageError(
            f"a draft head reads every token's hidden state, which {name} does not keep; give another draft"
        )
    if submission.prefix is not None:
        raise UsageError(f"{name} holds a prompt by itself, and shares no prefix; leave cache= out, or the prefix")
    if submission.options.receipt:
        raise UsageError(f"a receipt holds no cache policy; leave out {name}, or the receipt")
