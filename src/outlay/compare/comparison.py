"""What a comparison is about: contenders that answer items, and answers that are read, scored and shown.

The session (turns, journal, intervals, ratios, manifest, report) knows no more of either than this. Texts
(`outlay.compare.texts`) and pictures (`outlay.compare.detection`) are such comparisons.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.compare.turns import Pending, Plan, Rows
from outlay.progress import ShowProgress

if TYPE_CHECKING:
    from outlay.compare.results import Answer, Tally
    from outlay.viewer.report import Page

Key = tuple[str, str]
"""A contender's method and budget, which identify its runs in a journal."""


@dataclass(frozen=True)
class Display:
    """How results are shown."""

    page: Page
    """How the report shows answers and ranks the contenders."""
    costs: Mapping[str, str]
    """Entries of the ledger that quality is drawn against, in words."""


class Answers(ABC):
    """How the answers of a comparison are read from its journal, scored and shown."""

    display: Display

    @abstractmethod
    def read(self, row: Mapping[str, Any]) -> Answer:
        """Returns the answer in a journal's row that holds one."""

    def spent(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Returns the ledger of a journal's row, with the rates that follow from it."""
        return dict(row["ledger"])

    @abstractmethod
    def quality(self, contender: int, tally: Tally) -> dict[str, float] | None:
        """Returns the quality of all answers of a contender: `mean, low, high, n`; None where there is none."""

    @abstractmethod
    def shown(self, tallies: Sequence[Tally], references: Sequence[int]) -> dict[str, Any]:
        """Returns what `results.json` holds of the items, and of the answers to them."""


class Ready(ABC):
    """A comparison whose contenders have been tried."""

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """How often each item is answered."""

    @property
    @abstractmethod
    def keys(self) -> Sequence[Key]:
        """The contenders."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many items there are."""

    @abstractmethod
    def manifest(self, command: Sequence[str]) -> dict[str, Any]:
        """Returns the manifest. Raises `UsageError` where this is not the comparison that it is to repeat."""

    @abstractmethod
    def written(self) -> str:
        """Returns the items as JSON lines."""

    @abstractmethod
    def run(self, pending: Sequence[Pending]) -> Iterator[Rows]:
        """Yields the rows of each turn, a row for each contender and item: a ledger and an answer, or an error.

        Args:
            pending: The shards, each with what is done of it.
        """

    def finish(self, out: Path, progress: ShowProgress) -> None:  # noqa: B027 - most comparisons have nothing to add
        """Writes what is made of the runs once all are done, such as marks."""

    @abstractmethod
    def answers(self, out: Path) -> Answers:
        """Returns how the answers in a folder are read."""


class Comparison(ABC):
    """What is compared, before anything is loaded."""

    @abstractmethod
    def check(self) -> None:
        """Raises `UsageError` for what can be refused before anything is loaded."""

    @abstractmethod
    def prepare(self, progress: ShowProgress) -> Ready:
        """Loads what is compared and tries it. Raises `UsageError` for what can't run."""
