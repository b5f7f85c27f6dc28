"""Prompt lookup: what followed the last time that the text's end stood in it is drafted again (Saxena 2023)."""

from __future__ import annotations

from outlay.engine.tree_run import TreeRun
from outlay.speculation.ngrams import NgramTable, TextNgrams
from outlay.speculation.rounds import DraftLimits, DraftTree, Proposer

ORIGIN = "lookup"


class LookupProposer(Proposer):
    """Looks for the longest end of the text that stood in it before.

    Args:
        run: The run whose text is searched.
        longest: The longest end that is looked for, in tokens.
        shortest: The shortest one.
        table: N-grams to look in where the text has no such place.
    """

    name = ORIGIN

    def __init__(self, run: TreeRun, longest: int, shortest: int = 1, table: NgramTable | None = None) -> None:
        self._run, self._shortest, self._table = run, shortest, table
        self._text = TextNgrams(longest)
        self._text.extend(run.known_text)
        self._known = 0

    def propose(self, limits: DraftLimits) -> DraftTree:
        """Drafts a chain."""
        tree, count = DraftTree(), min(limits)
        found = self.match()
        if found is not None:
            tree.add_chain(self.after(found[0], count), self.name)
        elif self._table is not None:
            tree.add_chain(self._from_table(self._table, count), self.name)
        return tree

    def match(self) -> tuple[int, int] | None:
        """Returns the place behind the match and its length, after catching up with the run."""
        self._text.extend(self._run.tokens[self._known :])
        self._known = len(self._run.tokens)
        return self._text.match(self._shortest)

    def after(self, place: int, count: int) -> list[int]:
        """Returns `count` tokens from a place of the text on."""
        return list(self._text.after(place, count))

    def _from_table(self, table: NgramTable, count: int) -> list[int]:
        """Follows the most frequent successors of the longest context that the table knows."""
        tokens = self._text.tokens[-(table.order - 1) :]
        drafted: list[int] = []
        while len(drafted) < count:
            context = [*tokens, *drafted]
            longest = range(min(table.order - 1, len(context)), 1, -1)
            known = next((found for length in longest if (found := table.successors(context[-length:]))), None)
            if known is None:
                break
            drafted.append(known[0][0])
        return drafted
