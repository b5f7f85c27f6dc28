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

Work = Generator[Request | list[Request], Any, None]


@dataclass(frozen=True)
class About:
    """A method's entry in the catalogue.

    `needs` names what a submission must give or have, `takes` what it may give, such as a "draft". `exact` says that
    the text is distributed as the target model's own.
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


def _written(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
