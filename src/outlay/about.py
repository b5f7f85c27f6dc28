"""An entry of the catalogue: what it is called, which task it does, what it counts, and the command that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from outlay.budget import declare

TEXT = "text"  # the task of what decodes tokens


@dataclass(frozen=True)
class About:
    """What the catalogue says about a method.

    `needs` names what a submission must give or have, `takes` what it may give: a "draft", a "scorer", a "constraint",
    a "tree" of prompts, a "cache" policy. `models` names the options that hold a model, or a name to load it by,
    `scorers` those that hold what `scorer=` takes, `texts` those that hold any text: what other options of letters hold
    may be a file's name, which a server takes from no request. `exact` says that the text is distributed as the target
    model's own. `task` names what is done, `command` runs what does another task than text. `counts` gives the unit of
    each extra that the method adds to the ledger; a budget can cap them by name. `runs_code` says that it executes what
    a model writes: a server has such methods turned off.
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
    scorers: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    runs_code: bool = False
    task: str = TEXT
    command: str = ""
    counts: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, unit in self.counts.items():
            declare(name, unit)


class Entry:
    """Base of what the catalogue lists. A subclass is a frozen dataclass of its options, with an `about`."""

    about: ClassVar[About]

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
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return str(getattr(value, "name", value))  # a model by its name
