"""Constraints on tokens themselves, and on a part of a text: paths of tokens, and what follows a mark."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from outlay.constrain.constraint import Constraint, Mask, State, end_mask
from outlay.constrain.vocabulary import Vocabulary
from outlay.errors import UsageError


class TokenPaths(Constraint):
    """One of some sequences of tokens, special tokens included: a trie, such as that of all items of a catalogue.

    Args:
        paths: Token ids of each sequence, without an end token.
    """

    def __init__(self, paths: Iterable[Sequence[int]]) -> None:
        self._root: _Trie = {}
        for path in paths:
            at = self._root
            for token in path:
                at = at.setdefault(token, {})
            at[_END] = {}
        if not self._root or _END in self._root:
            raise UsageError("paths of tokens need one path or more, none of them empty")
        self._texts: set[str] = set()

    @property
    def masks_all(self) -> bool:
        return True

    def begin(self, vocabulary: Vocabulary) -> State:
        strange = next((token for token in _tokens(self._root) if not 0 <= token < vocabulary.size), None)
        if strange is not None:
            raise UsageError(f"token {strange} of a path is not in the vocabulary (0 to {vocabulary.size - 1})")
        self._texts.update(_texts(self._root, vocabulary, b"", True))
        return _TrieState(vocabulary, self._root)

    def check(self, text: str) -> bool:
        return text in self._texts

    def unwritable(self, vocabulary: Vocabulary) -> frozenset[int]:
        return frozenset()


_END = -1  # the key of a node at which a path ends
_Trie = dict[int, "_Trie"]


class _TrieState(State):
    def __init__(self, vocabulary: Vocabulary, at: _Trie) -> None:
        self._vocabulary, self._at = vocabulary, at

    def after(self, token: int) -> State | None:
        return _TrieState(self._vocabulary, self._at[token]) if token != _END and token in self._at else None

    def mask(self) -> Mask:
        mask = end_mask(self._vocabulary, self.ends())
        mask[[token for token in self._at if token != _END]] = True
        return mask

    def ends(self) -> bool:
        return _END in self._at

    def forced(self) -> list[int]:
        tokens, at = [], self._at
        while len(at) == 1 and _END not in at:
            ((token, at),) = at.items()
            tokens.append(token)
        return tokens


def _tokens(trie: _Trie) -> Iterable[int]:
    for token, below in trie.items():
        if token != _END:
            yield token
            yield from _tokens(below)


def _texts(trie: _Trie, vocabulary: Vocabulary, data: bytes, first: bool) -> Iterable[str]:
    for token, below in trie.items():
        if token == _END:
            yield data.decode(errors="replace")
        else:
            written = vocabulary.written(token, first)
            yield from _texts(below, vocabulary, data + written, first and not written)


@dataclass(frozen=True)
class After(Constraint):
    """Any text, in which the constraint holds for what follows a mark: a call of a tool, an answer behind thoughts.

    Args:
        mark: The text behind which the constraint begins, such as `<tool_call>`.
        inner: The constraint.
        until: The text that must follow what the constraint allows; the text is free again behind it. Where it is
            empty the constraint holds to the end.
        required: Whether the mark has to come.
    """

    mark: str
    inner: Constraint
    until: str = ""
    required: bool = False

    def __post_init__(self) -> None:
        if not self.mark:
            raise UsageError("a constraint on a part of the text needs a mark that begins it")

    @property
    def masks_all(self) -> bool:
        return self.inner.masks_all

    def begin(self, vocabulary: Vocabulary) -> State:
        return _Free(self, vocabulary, b"", not self.required)

    def check(self, text: str) -> bool:
        return self._holds(text, not self.required)

    def _holds(self, text: str, may_end: bool) -> bool:
        _, found, rest = text.partition(self.mark)
        if not found:
            return may_end
        if not self.until:
            return self.inner.check(rest)
        ends = [place for place in range(len(rest)) if rest.startswith(self.until, place)]
        return any(self.inner.check(rest[:end]) and self._holds(rest[end + len(self.until) :], True) for end in ends)


class _Part(State):
    """A text in one of its parts; `_write` goes on by bytes, which may lead through several parts."""

    def __init__(self, owner: After, vocabulary: Vocabulary) -> None:
        self._owner, self._vocabulary = owner, vocabulary

    def after(self, token: int) -> State | None:
        if token in self._vocabulary.special:
            return None
        return self.write(self._vocabulary.bytes[token])

    @abstractmethod
    def write(self, data: bytes) -> State | None:
        """Returns the state after bytes; None where they are not allowed."""


class _Free(_Part):
    """Free text, whose `tail` may be the beginning of the mark."""

    def __init__(self, owner: After, vocabulary: Vocabulary, tail: bytes, may_end: bool) -> None:
        super().__init__(owner, vocabulary)
        self._tail, self._may_end, self._mark = tail, may_end, owner.mark.encode()

    def write(self, data: bytes) -> State | None:
        text = self._tail + data
        place = text.find(self._mark)
        if place < 0:
            keep = len(self._mark) - 1
            return _Free(self._owner, self._vocabulary, text[-keep:] if keep else b"", self._may_end)
        inside = _Inside(self._owner, self._vocabulary, self._owner.inner.begin(self._vocabulary))
        return inside.write(text[place + len(self._mark) :])

    def mask(self) -> Mask:
        mask = end_mask(self._vocabulary, self.ends())
        for token, data in enumerate(self._vocabulary.bytes):
            if data:
                mask[token] = self._mark not in self._tail + data or self.after(token) is not None
        return mask

    def ends(self) -> bool:
        return self._may_end


class _Inside(_Part):
    """The part that the constraint rules; `closing` bytes of the text behind it are written."""

    def __init__(self, owner: After, vocabulary: Vocabulary, inner: State, closing: int = 0) -> None:
        super().__init__(owner, vocabulary)
        self._inner, self._closing, self._until = inner, closing, owner.until.encode()

    def write(self, data: bytes) -> State | None:
        if not data:
            return self
        if not self._closing:
            tokens = self._vocabulary.longest_match(data)
            state: State | None = self._inner
            for token in tokens:
                state = state.after(token) if state is not None else None
            if state is not None and b"".join(self._vocabulary.bytes[token] for token in tokens) == data:
                return _Inside(self._owner, self._vocabulary, state)
            if not self._until or not self._inner.ends():
                return None
        left = self._until[self._closing :]
        if left.startswith(data) and len(data) < len(left):
            return _Inside(self._owner, self._vocabulary, self._inner, self._closing + len(data))
        if not data.startswith(left):
            return None
        return _Free(self._owner, self._vocabulary, b"", True).write(data[len(left) :])

    def mask(self) -> Mask:
        mask = np.zeros(self._vocabulary.size, dtype=bool) if self._closing else self._inner.mask()
        mask[list(self._vocabulary.eos)] = self.ends()
        if self._until and (self._closing or self._inner.ends()):
            left = self._until[self._closing :]
            for token, data in enumerate(self._vocabulary.bytes):
                if data and (left.startswith(data) or data.startswith(left)):
                    mask[token] = self.after(token) is not None
        return mask

    def ends(self) -> bool:
        return not self._until and self._inner.ends()

    def forced(self) -> list[int]:
        if self._closing:
            return self._vocabulary.longest_match(self._until[self._closing :])
        return self._inner.forced()
