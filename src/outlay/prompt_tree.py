"""Prompts that begin alike: a text or conversation and what follows it, branch by branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from outlay.errors import UsageError

Part: TypeAlias = "str | Sequence[Mapping[str, Any]] | Sequence[int]"
"""A text, chat messages or token ids."""
Branch: TypeAlias = "Part | PromptTree | Sequence[Branch]"
"""What follows a prefix: the end of a prompt, a tree with a longer prefix, or a group of branches."""


@dataclass(frozen=True)
class PromptTree:
    """Prompts with a common beginning: `PromptTree(document, [[q1, q2], [q3]])` has three leaves.

    Each leaf is the prompt along its path and reads as it would alone: what leaves share ends at the last token in
    which they agree. Two texts are joined by the separator; token ids and messages are put side by side, and a text
    that follows messages is one more message of the user.

    Args:
        prefix: What all prompts begin with; None where the branches are whole prompts.
        branches: What follows it. A list groups leaves; a `PromptTree` in it has a longer beginning of its own.
        separator: What stands between two texts.

    Raises:
        UsageError: For a tree without a leaf, an empty part, and parts that can't follow each other.
    """

    prefix: Part | None
    branches: Sequence[Branch]
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        self.leaves()

    def leaves(self) -> list[Part]:
        """Returns the prompts, in the order in which the branches name them."""
        if self.prefix is not None:
            _refuse_empty(self.prefix)
        leaves = [
            self._joined(end) for branch in self.branches for end in (_refuse_empty(part) for part in _ends(branch))
        ]
        if not leaves:
            raise UsageError("a tree of prompts needs a leaf: PromptTree(prefix, [question, ...])")
        return leaves

    def _joined(self, end: Part) -> Part:
        prefix = self.prefix
        if prefix is None:
            return end
        if isinstance(prefix, str) and isinstance(end, str):
            return prefix + self.separator + end
        if isinstance(prefix, str) or (isinstance(end, str) and isinstance(prefix[0], int)):
            raise UsageError("in a tree of prompts a text follows a text or messages, and token ids follow token ids")
        if isinstance(end, str):
            return [*_messages(prefix), {"role": "user", "content": end}]
        if isinstance(prefix[0], int) != isinstance(end[0], int):
            raise UsageError("in a tree of prompts messages follow messages, and token ids follow token ids")
        return [*prefix, *end]


def _messages(part: Part) -> list[Mapping[str, Any]]:
    return [message for message in part if isinstance(message, Mapping)]


def _ends(branch: Branch) -> list[Part]:
    """Returns the ends of prompts in a branch."""
    if isinstance(branch, PromptTree):
        return branch.leaves()
    if isinstance(branch, str) or not branch or isinstance(branch[0], int | Mapping):
        return [branch]  # type: ignore[list-item]
    return [end for each in branch for end in _ends(each)]  # type: ignore[arg-type]


def _refuse_empty(part: Part) -> Part:
    if not part or (isinstance(part, str) and not part.strip()):
        raise UsageError("a part of the tree of prompts is empty; give it some text, messages or token ids")
    return part
