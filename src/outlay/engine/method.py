"""What a method is: a generator that yields requests for work and is sent their results. It never runs a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Any, ClassVar

from outlay.about import About as About
from outlay.about import Entry
from outlay.engine.request import Request
from outlay.engine.run import Run
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError

Work = Generator[Request | list[Request], Any, None]


class Method(Entry, ABC):
    """Base of all methods. A subclass is a frozen dataclass of its options, with an `about` and a `decode`."""

    run_type: ClassVar[type[Run]] = TreeRun
    """What the method decodes on; `decode` gets one."""

    @abstractmethod
    def decode(self, run: Any) -> Work:
        """Yields requests and commits tokens until the run is finished; see `outlay.decode.greedy` for the shortest."""

    def check(self, submission: Submission) -> None:
        """Raises `UsageError` where the submission doesn't fit this method. Called before the run starts."""


def refuse_misfit(about: About, submission: Submission) -> None:
    """Raises `UsageError` for a scorer or constraint that a method needs and doesn't get, or gets and doesn't take."""
    for name, given in (("scorer", submission.scorer), ("constraint", submission.constraint)):
        if given is None and name in about.needs:
            raise UsageError(f"{about.name} needs a {name}: give one with {name}=")
        if given is not None and name not in (*about.needs, *about.takes):
            raise UsageError(f"{about.name} takes no {name}; leave {name}= out, or choose a method that takes one")
