"""Constraints that look at the text itself: a choice of texts, and any predicate over bytes."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass

from outlay.constrain.constraint import Constraint, Mask, State, end_mask
from outlay.constrain.vocabulary import Vocabulary
from outlay.errors import UsageError


@dataclass(frozen=True, init=False)
class Choice(Constraint):
    """One of some texts."""

    texts: tuple[str, ...]

    def __init__(self, *texts: str) -> None:
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UsageError("a choice needs one text or more")
        object.__setattr__(self, "texts", texts)

    @property
    def masks_all(self) -> bool:
        return True

    def begin(self, vocabulary: Vocabulary) -> State:
        return _ChoiceState(vocabulary, tuple(dict.fromkeys(text.encode() for text in self.texts)), 0, True)

    def check(self, text: str) -> bool:
        return text in self.texts


class _ChoiceState(State):
    """The texts that are still possible, after `at` bytes."""

    def __init__(self, vocabulary: Vocabulary, texts: tuple[bytes, ...], at: int, first: bool) -> None:
        self._vocabulary, self._texts, self._at, self._first = vocabulary, texts, at, first

    def after(self, token: int) -> State | None:
        if token in self._vocabulary.special:
            return None
        data = self._vocabulary.written(token, self._first)
        left = tuple(text for text in self._texts if text.startswith(data, self._at))
        return _ChoiceState(self._vocabulary, left, self._at + len(data), False) if left else None

    def mask(self) -> Mask:
        mask = end_mask(self._vocabulary, self.ends())
        ids = self._vocabulary.first_ids if self._first else self._vocabulary.ids
        for text in self._texts:
            for end in range(self._at + 1, len(text) + 1):
                mask[ids.get(text[self._at : end], [])] = True
        if self._first and self._vocabulary.strips:
            mask[self._vocabulary.ids.get(b" ", [])] = True
        return mask

    def ends(self) -> bool:
        return any(len(text) == self._at for text in self._texts)

    def forced(self) -> list[int]:
        if (self._first and self._vocabulary.strips) or self.ends():
            return []
        shared = self._texts[0]
        for text in self._texts[1:]:
            same = next((i for i, (a, b) in enumerate(zip(shared, text, strict=False)) if a != b), None)
            shared = shared[: min(len(text), len(shared)) if same is None else same]
        return self._vocabulary.longest_match(shared[self._at :])


@dataclass(frozen=True)
class Predicate(Constraint):
    """Whatever Python functions say of the bytes so far; the last character may be unfinished.

    Args:
        complete_ok: Tells whether a text is complete.
        prefix_ok: Tells whether a text can still become complete; by default every beginning may.
    """

    complete_ok: Callable[[bytes], bool]
    prefix_ok: Callable[[bytes], bool] | None = None

    def begin(self, vocabulary: Vocabulary) -> State:
        return _PredicateState(vocabulary, self, b"", True)

    def check(self, text: str) -> bool:
        return _asked(self.complete_ok, text.encode())

    def open(self, data: bytes) -> bool:
        """Tells whether `data` is UTF-8, but for an unfinished last character, and may become a complete text."""
        try:
            codecs.getincrementaldecoder("utf-8")().decode(data)
        except UnicodeDecodeError:
            return False
        return self.prefix_ok is None or _asked(self.prefix_ok, data)


class _PredicateState(State):
    def __init__(self, vocabulary: Vocabulary, predicate: Predicate, data: bytes, first: bool) -> None:
        self._vocabulary, self._predicate, self._data, self._first = vocabulary, predicate, data, first

    def after(self, token: int) -> State | None:
        if token in self._vocabulary.special:
            return None
        data = self._data + self._vocabulary.written(token, self._first)
        return _PredicateState(self._vocabulary, self._predicate, data, False) if self._predicate.open(data) else None

    def mask(self) -> Mask:
        mask = end_mask(self._vocabulary, self.ends())
        for token in range(self._vocabulary.size):
            if token not in self._vocabulary.special:
                mask[token] = self._predicate.open(self._data + self._vocabulary.written(token, self._first))
        return mask

    def goes_on(self) -> bool:
        tokens = (token for token in range(self._vocabulary.size) if token not in self._vocabulary.special)
        return any(self.after(token) is not None for token in tokens)  # up to the first: each one calls the predicate

    def ends(self) -> bool:
        try:
            self._data.decode()
        except UnicodeDecodeError:
            return False
        return _asked(self._predicate.complete_ok, self._data)


def _asked(predicate: Callable[[bytes], bool], data: bytes) -> bool:
    """Asks a predicate; what it raises, or returns in place of a bool, is an error that names the text."""
    try:
        answer = predicate(data)
    except Exception as error:
        raise UsageError(f"the constraint's predicate raised {error!r} for {data[:80]!r}") from error
    if not isinstance(answer, bool):
        raise UsageError(f"the constraint's predicate must return True or False, not {answer!r}, for {data[:80]!r}")
    return answer
