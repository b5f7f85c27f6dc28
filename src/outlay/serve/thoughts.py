"""The reasoning of models that think before they answer: told from the answer, and ended where it takes too long."""

from __future__ import annotations

from outlay.constrain import After, Constraint
from outlay.models.reasoning import Tags
from outlay.serve.tools import Delta, start_of


class Thoughts:
    """Parts a text into reasoning and answer as it grows.

    `closed` tells whether the closing tag was read.

    Args:
        tags: what stands around the reasoning.
        opened: whether the prompt has opened it.
    """

    def __init__(self, tags: Tags, opened: bool) -> None:
        self._tags = tags
        self.marks = frozenset(tags)
        self._inside, self._begun = opened, opened
        self._held = ""
        self._trim = opened  # space after a tag
        self.closed = False

    @property
    def thinking(self) -> bool:
        """Whether the text is inside the reasoning."""
        return self._inside

    def constrained(self, constraint: Constraint) -> Constraint:
        """Returns a constraint of the answer as one of the text, which begins with reasoning where that was opened."""
        return After(self._tags.closing, constraint, required=True) if self._inside else constraint

    def push(self, text: str) -> list[Delta]:
        """Adds text; returns what is certain now. The tags, and space next to them, belong to neither."""
        self._held += text
        found: list[Delta] = []
        while (step := self._step()) is not None:
            found += step
        return found

    def finish(self) -> list[Delta]:
        """Returns what was held back, at the end of the text."""
        rest, self._held = self._held, ""
        return [Delta("reasoning" if self._inside else "content", rest)] if rest else []

    def _step(self) -> list[Delta] | None:
        """Moves on by one tag, or by all that holds none; None where more text is needed."""
        if not self._begun:
            begin = self._held.lstrip()
            if self._tags.opening.startswith(begin[: len(self._tags.opening)]):
                if len(begin) < len(self._tags.opening):
                    return None
                self._held, self._inside, self._trim = begin[len(self._tags.opening) :], True, True
            self._begun = True
        if self._trim:
            self._held = self._held.lstrip()
        if not self._held:
            return None
        self._trim = False
        if not self._inside:
            rest, self._held = self._held, ""
            return [Delta("content", rest)]
        at = self._held.find(self._tags.closing)
        if at >= 0:
            before, self._held = self._held[:at].rstrip(), self._held[at + len(self._tags.closing) :]
            self._inside, self.closed, self._trim = False, True, True
            return [Delta("reasoning", before)] if before else []
        sure = len(self._held[: len(self._held) - start_of(self._tags.closing, self._held)].rstrip())
        before, self._held = self._held[:sure], self._held[sure:]
        return [Delta("reasoning", before)] if before else None
