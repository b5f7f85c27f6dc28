"""What a constraint is: it makes the state of an empty text, and each token makes the next state from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from outlay.constrain.vocabulary import Vocabulary, vocabulary_of
from outlay.errors import UsageError
from outlay.models.tokenizer import Tokenizer

Mask = npt.NDArray[np.bool_]


class State(ABC):
    """What a constraint knows of a text. It never changes, so that any number of texts can go on from it."""

    @abstractmethod
    def after(self, token: int) -> State | None:
        """Returns the state after one more token, which is no end token; None where it is not allowed."""

    @abstractmethod
    def mask(self) -> Mask:
        """Returns which tokens may follow, bool [vocab]. End tokens are allowed where the text may end."""

    @abstractmethod
    def ends(self) -> bool:
        """Tells whether the text may end here."""

    def goes_on(self) -> bool:
        """Tells whether any token may follow."""
        return bool(self.mask().any())

    def forced(self) -> list[int]:
        """Returns tokens that write what must follow in any case; none where nothing must."""
        return []


class Constraint(ABC):
    """What all texts of a run must satisfy."""

    @property
    def masks_all(self) -> bool:
        """Whether all that masks allow can become a text that `check` accepts.

        Otherwise a run may have to go back, so its text is held until it ends.
        """
        return False

    @abstractmethod
    def begin(self, vocabulary: Vocabulary) -> State:
        """Returns the state of the empty text.

        Raises:
            UsageError: For a constraint that can't be read.
        """

    @abstractmethod
    def check(self, text: str) -> bool:
        """Tells whether a whole text satisfies the constraint, whatever the states say."""

    def unwritable(self, vocabulary: Vocabulary) -> frozenset[int]:
        """Returns tokens that no text may hold, whatever stands before them: by default those that write nothing."""
        return vocabulary.special - vocabulary.eos

    def __and__(self, other: Constraint) -> Constraint:
        return Both(self, other)


@dataclass(frozen=True)
class Both(Constraint):
    """Two constraints at once."""

    left: Constraint
    right: Constraint

    def begin(self, vocabulary: Vocabulary) -> State:
        return _BothState(self.left.begin(vocabulary), self.right.begin(vocabulary), vocabulary)

    def check(self, text: str) -> bool:
        return self.left.check(text) and self.right.check(text)

    def unwritable(self, vocabulary: Vocabulary) -> frozenset[int]:
        return self.left.unwritable(vocabulary) | self.right.unwritable(vocabulary)


class _BothState(State):
    def __init__(self, left: State, right: State, vocabulary: Vocabulary) -> None:
        self._left, self._right, self._vocabulary = left, right, vocabulary

    def after(self, token: int) -> State | None:
        left = self._left.after(token)
        right = self._right.after(token) if left is not None else None
        return _BothState(left, right, self._vocabulary) if left is not None and right is not None else None

    def mask(self) -> Mask:
        return self._left.mask() & self._right.mask()

    def ends(self) -> bool:
        return self._left.ends() and self._right.ends()

    def forced(self) -> list[int]:
        return self._left.forced() or self._right.forced()


@dataclass(frozen=True, eq=False)
class Compiled:
    """A constraint with the state of the empty text, over the tokens of one model."""

    constraint: Constraint
    state: State
    unwritable: frozenset[int]


def compile_constraint(constraint: Constraint, tokenizer: Tokenizer, size: int) -> Compiled:
    """Compiles a constraint for a model with `size` logits.

    Raises:
        UsageError: For a constraint that can't be read, or that no text of this model's tokens satisfies.
    """
    vocabulary = vocabulary_of(tokenizer, size)
    state = constraint.begin(vocabulary)
    if not state.ends() and not state.goes_on():
        raise UsageError("no text satisfies this constraint, or the model has no tokens that could begin one")
    return Compiled(constraint, state, constraint.unwritable(vocabulary))


def end_mask(vocabulary: Vocabulary, ends: bool) -> Mask:
    """Returns a mask, bool [vocab], of no token, or of the end tokens alone where the text may end."""
    mask = np.zeros(vocabulary.size, dtype=bool)
    if ends:
        mask[list(vocabulary.eos)] = True
    return mask
