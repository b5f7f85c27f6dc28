"""Exact denoisers of ParallelBench's list tasks (Kang et al. 2025): the prompt is "abc=", the answer a list of letters.

An answer has as many items as the prompt; what follows is the end of the text.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from outlay.diffuse.exact.denoiser import END, EQUALS, IDS, MASK, NEW, VOCAB, ExactDenoiser, Probs, Tokens


class ExactList(ExactDenoiser):
    """The answer to a list. Subclasses give the distribution of its items."""

    def given(self, text: Tokens) -> int:
        ends = np.flatnonzero(text == IDS[EQUALS])
        return int(ends[0]) + 1 if len(ends) else len(text)

    def marginals(self, tokens: Tokens) -> Probs:
        start = self.given(tokens)
        items = tokens[: max(start - 1, 0)]
        answer = tokens[start : start + len(items)]
        found = np.zeros((len(tokens), VOCAB))
        found[np.arange(start), np.where(tokens[:start] == MASK, IDS[END], tokens[:start])] = 1.0
        found[start + len(answer) :, IDS[END]] = 1.0
        if len(answer):
            found[start : start + len(answer)] = self.item_probs(items, answer)
        return found

    @abstractmethod
    def item_probs(self, items: Tokens, answers: Tokens) -> Probs:
        """Returns the distribution of each item of answers, [..., n, `VOCAB`].

        Args:
            items: The list, [length].
            answers: Beginnings of answers with their masks, [..., n]; n is at most the length.
        """


@dataclass(frozen=True)
class Copy(ExactList):
    """The items in their order."""

    name: ClassVar[str] = "copy"

    def item_probs(self, items: Tokens, answers: Tokens) -> Probs:
        return np.broadcast_to(np.eye(VOCAB)[items[: answers.shape[-1]]], (*answers.shape, VOCAB))


@dataclass(frozen=True)
class Reverse(ExactList):
    """The items from the last to the first."""

    name: ClassVar[str] = "reverse"

    def item_probs(self, items: Tokens, answers: Tokens) -> Probs:
        return np.broadcast_to(np.eye(VOCAB)[items[::-1][: answers.shape[-1]]], (*answers.shape, VOCAB))


@dataclass(frozen=True)
class Permutation(ExactList):
    """The items in any order, each as probable: shuffle, the identity included."""

    name: ClassVar[str] = "permutation"

    def item_probs(self, items: Tokens, answers: Tokens) -> Probs:
        known = np.eye(VOCAB)[answers]
        masked = answers == MASK
        placed = np.where(masked[..., None], 0.0, known).sum(-2)
        left = (np.bincount(items, minlength=VOCAB) - placed).clip(0)
        total = left.sum(-1, keepdims=True)
        law = np.where(total > 0, left / np.where(total > 0, total, 1), np.eye(VOCAB)[items].mean(0))
        return np.where(masked[..., None], law[..., None, :], known)


@dataclass(frozen=True)
class ReplaceOne(ExactList):
    """The items in their order, but for one of them, which is replaced by "#"; each as probable."""

    name: ClassVar[str] = "replace-one"

    def item_probs(self, items: Tokens, answers: Tokens) -> Probs:
        kept = np.eye(VOCAB)[items[: answers.shape[-1]]]
        masked = answers == MASK
        replaced = (answers == IDS[NEW]).any(-1, keepdims=True)
        share = np.where(replaced, 0.0, 1 / masked.sum(-1, keepdims=True).clip(1))[..., None]
        law = (1 - share) * kept + share * np.eye(VOCAB)[IDS[NEW]]
        return np.where(masked[..., None], law, np.eye(VOCAB)[answers])
