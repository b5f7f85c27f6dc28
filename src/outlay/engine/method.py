"""What a method is: a generator that yields requests for work and is sent their results. It never runs a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

from outlay.engine.request import Request
from outlay.engine.run import Run
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.models.load import Model

Work = Generator[Request | list[Request], Any, None]


@dataclass(frozen=True)
class About:
    """A method's entry in the catalogue.

    `needs` names what a submission must give or have, `takes` what it may give: a "draft", a "scorer", a "constraint".
    `models` names the options that hold a model, or a name to load it by. `exact` says that the text is distributed as
    the target model's own.
    """

    name: str
    summary: str
    paper: str
    family: str
    spends: str
    saves: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    exact: bool = True
    models: tuple[str, ...] = ()


class Method(ABC):
    """Base of all methods. A subclass is a frozen dataclass of its options, with an `about` and a `decode`."""

    about: ClassVar[About]

    run_type: ClassVar[type[Run]] = TreeRun
    """What the method decodes on; `decode` gets one."""

    @abstractmethod
    def decode(self, run: Any) -> Work:
        """Yields requests and commits tokens until the run is finished; see `outlay.decode.greedy` for the shortest."""

    def check(self, submission: Submission) -> None:  # noqa: B027 - a hook that most methods leave as it is
        """Raises `UsageError` where the submission doesn't fit this method. Called before the run starts."""

    @property
    def label(self) -> str:
        """The name with the options that differ from their defaults, as the command line takes it."""
        options = [
            f"{name}={_written(getattr(self, name))}"
            for name, option in getattr(self, "__dataclass_fields__", {}).items()
            if getattr(self, name) != option.default
        ]
        return self.about.name + (":" + ",".join(options) if options else "")


def refuse_misfit(about: About, submission: Submission) -> None:
    """Raises `UsageError` for a scorer or constraint that a method needs and doesn't get, or gets and doesn't take."""
    for name, given in (("scorer", submission.scorer), ("constraint", submission.constraint)):
        if given is None and name in about.needs:
            raise UsageError(f"{about.name} needs a {name}: give one with {name}=")
        if given is not None and name not in (*about.needs, *about.takes):
            raise UsageError(f"{about.name} takes no {name}; leave {name}= out, or choose a method that takes one")


def _written(value: object) -> str:
    if isinstance(value, Model):
        return value.name
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
