"""Planned speculation: each round drafts what pays on this machine, in this batch, for this text, or nothing at all.

The loop: a gate (`gate.py`), a bandit that goes by the clock, decides whether the round drafts, and whether the
draft head is asked. Sources (`sources.py`) add candidates to one tree: prompt lookup, a table of n-grams, and the draft
head or model. The acceptance model (`acceptance.py`) turns what a source says into a probability, by what became of
earlier candidates like it. The cost model (`speculation/costs.py`, with the slowdown of the moment) says how many
seconds further rows take; and the tree whose expected tokens outweigh its seconds at the present rate is drafted
(`candidates.py`). One target pass verifies it, and what was committed teaches all four. All tuned numbers stand in
`config.py`.

Lossless: drafted tokens are matched with the target's own, so the text is what greedy or sample write with the same
seed, whatever was planned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outlay.decode.draft.auto.config import AutoConfig
from outlay.decode.draft.auto.planner import Planner
from outlay.decode.draft.auto.sources import model_table
from outlay.engine.method import About, Method, Work
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.models.load import Model
from outlay.speculation.costs import measure_beside
from outlay.speculation.ngrams import NgramTable
from outlay.speculation.rounds import DraftLimits, sample_and_match, steered, verify_tree
from outlay.speculation.tables import open_table


@dataclass(frozen=True)
class Auto(Method):
    """Drafts what pays: from the text itself, a table of n-grams, and a draft head or model, or nothing."""

    nodes: int = 16
    """Most tokens that a round drafts. In the replay of `config.py`, 8 lost little; 12 and 24 changed nothing."""
    draft: bool = True
    """Whether a draft head or model is asked."""
    lookup: bool = True
    """Whether the text itself is looked up."""
    table: str = "default"
    """A file with a table of n-grams; "default": the model's own; "none"."""

    config: ClassVar[AutoConfig] = AutoConfig()
    about: ClassVar[About] = About(
        name="auto",
        summary="drafts what pays here and now, or nothing",
        paper="",
        family="speculation",
        spends="positions and draft passes where they are worth their time",
        saves="time; it writes what greedy or sample write",
        takes=("draft", "constraint"),
    )

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise UsageError(f"auto needs nodes of 1 or more, not {self.nodes}")

    def check(self, submission: Submission) -> None:
        draft = submission.draft
        if draft is not None and draft.model is None:
            raise UsageError(
                "auto takes a draft head or model as its draft; what the text and a table of n-grams say it looks up "
                "by itself (auto:table=FILE for another table)"
            )
        self._table(submission.model)

    def decode(self, run: TreeRun) -> Work:
        measure_beside(run, run.model)
        if run.draft is not None and self.draft:
            measure_beside(run, run.draft.model)
        table = self._table(run.model)
        planner = Planner(run, self.config, self.nodes, draft=self.draft, lookup=self.lookup, table=table)
        while True:
            plan = yield from planner.plan()
            before = len(run.tokens)
            plan.tree = steered(run, plan.tree, DraftLimits(self.nodes, self.nodes).within(run))
            if plan.tree:
                yield from verify_tree(run, plan.tree, sample_and_match)
            else:
                run.commit((yield from run.next_token(run.tip)))
                run.count(rounds=1)
            planner.learn(plan, run.tokens[before:])

    def _table(self, model: Model) -> NgramTable | None:
        """Returns the table that is looked up, if any. Raises `UsageError` where it can't be had."""
        return model_table(model) if self.table == "default" else open_table(self.table, model)
