"""Prompt lookup: where the text's end stood before, what followed there is drafted.

No model drafts. It pays where a text repeats itself or its prompt, as summaries and code do, and costs next to nothing
where it does not (Saxena 2023). Exact: the drafted tokens are matched with the target's own, so the text is what greedy
or sample write with the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outlay.engine.method import About, Method, Work
from outlay.engine.run import Run
from outlay.errors import UsageError
from outlay.speculation.lookup import LookupProposer
from outlay.speculation.ngrams import NgramTable
from outlay.speculation.round import Room, judge
from outlay.speculation.sources import table_of
from outlay.speculation.verify import sample_and_match


@dataclass(frozen=True)
class Lookup(Method):
    """Drafts `tokens` tokens behind the last place where the text's longest end, of `longest` tokens and fewer, stood.
    `table` names a file of n-grams to look in where the text has no such place."""

    tokens: int = 10
    longest: int = 3
    shortest: int = 1
    table: str | None = None

    about: ClassVar[About] = About(
        name="lookup",
        summary="what followed the same words before, drafted again",
        paper="Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding",
        family="speculation",
        spends="`tokens` + 1 positions a target pass where something is found",
        saves="target passes, where a text repeats itself or its prompt",
    )

    def __post_init__(self) -> None:
        for name in ("tokens", "shortest"):
            if getattr(self, name) < 1:
                raise UsageError(f"lookup needs {name} of 1 or more, not {getattr(self, name)}")
        if self.longest < self.shortest:
            raise UsageError(f"lookup's longest match, {self.longest}, is below its shortest, {self.shortest}")

    def check(self, run: Run) -> None:
        self._table(run)

    def decode(self, run: Run) -> Work:
        proposer = LookupProposer(run, self.longest, self.shortest, self._table(run))
        while True:
            room = Room(run, self.tokens, self.tokens)
            yield from judge(run, proposer.propose(room.nodes, room.depth), sample_and_match)

    def _table(self, run: Run) -> NgramTable | None:
        return None if self.table is None else table_of(self.table, run)
