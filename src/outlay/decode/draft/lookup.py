"""Prompt lookup: where the text's end stood before, what followed there is drafted.

No model drafts. It pays where a text repeats itself or its prompt, as summaries and code do, and costs next to nothing
where it does not (Saxena 2023). Lossless: the drafted tokens are matched with the target's own, so the text is what
greedy or sample write with the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outlay.engine.method import About, Method, Work
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.models.load import Model
from outlay.speculation.lookup import LookupProposer
from outlay.speculation.ngrams import NgramTable
from outlay.speculation.rounds import DraftLimits, sample_and_match, steered, verify_tree
from outlay.speculation.tables import open_table


@dataclass(frozen=True)
class Lookup(Method):
    """Prompt lookup decoding (Saxena 2023)."""

    tokens: int = 10
    """Tokens that are drafted behind a match."""

    longest: int = 3
    """The longest end of the text that is looked for, in tokens."""

    shortest: int = 1
    """The shortest end of the text that is looked for, in tokens."""

    table: str | None = None
    """A file of n-grams to look in where the text has no match (`outlay train table`)."""

    about: ClassVar[About] = About(
        name="lookup",
        summary="what followed the same words before, drafted again",
        paper="Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding",
        family="speculation",
        spends="`tokens` + 1 positions a target pass where something is found",
        takes=("constraint", "cache"),
        saves="target passes, where a text repeats itself or its prompt",
    )

    def __post_init__(self) -> None:
        for name in ("tokens", "shortest"):
            if getattr(self, name) < 1:
                raise UsageError(f"lookup needs {name} of 1 or more, not {getattr(self, name)}")
        if self.longest < self.shortest:
            raise UsageError(f"lookup's longest match, {self.longest}, is below its shortest, {self.shortest}")

    def check(self, submission: Submission) -> None:
        self._table(submission.model)

    def decode(self, run: TreeRun) -> Work:
        proposer = LookupProposer(run, self.longest, self.shortest, self._table(run.model))
        while True:
            limits = DraftLimits(self.tokens, self.tokens).within(run)
            tree = steered(run, proposer.propose(limits), limits)
            yield from verify_tree(run, tree, sample_and_match)

    def _table(self, model: Model) -> NgramTable | None:
        return None if self.table is None else open_table(self.table, model)
