"""Where bytes meet tokens: what each token of a model writes, at the beginning of a text and after it."""

from __future__ import annotations

from functools import cached_property
from weakref import WeakKeyDictionary

from outlay.models.tokenizer import Tokenizer


class Vocabulary:
    """The bytes of all tokens of a model.

    Args:
        tokenizer: The model's tokenizer.
        size: How many logits the model has; those beyond the tokenizer's tokens write nothing.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.size, self.eos = size, frozenset(token for token in tokenizer.eos_token_ids if token < size)
        self.bytes = [tokenizer.bytes_of(token) for token in range(size)]
        self.special = frozenset(token for token in range(size) if not self.bytes[token])
        self.strips = tokenizer.strips_first_space
        """Whether a text loses the space before its first word."""

    def written(self, token: int, first: bool) -> bytes:
        """Returns what a token writes; `first` tells whether nothing was written before it."""
        data = self.bytes[token]
        return data.removeprefix(b" ") if first and self.strips else data

    @cached_property
    def at_beginning(self) -> list[bytes]:
        """What each token writes at the beginning of a text."""
        return [self.written(token, True) for token in range(self.size)]

    @cached_property
    def ids(self) -> dict[bytes, list[int]]:
        """The tokens that write some bytes, after the beginning of a text."""
        return _by_bytes(self.bytes)

    @cached_property
    def first_ids(self) -> dict[bytes, list[int]]:
        """The tokens that write some bytes at the beginning of a text; those that write a stripped space alone too."""
        return _by_bytes(self.at_beginning)

    def longest_match(self, data: bytes) -> list[int]:
        """Returns tokens that write `data` after the beginning of a text, the longest at each place.

        They end before the first byte that no token begins with.
        """
        tokens, at = list[int](), 0
        while at < len(data):
            width = next(
                (w for w in range(min(self._longest, len(data) - at), 0, -1) if data[at : at + w] in self.ids), 0
            )
            if not width:
                break
            tokens.append(self.ids[data[at : at + width]][0])
            at += width
        return tokens

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.bytes), default=0)


_KNOWN: WeakKeyDictionary[Tokenizer, dict[int, Vocabulary]] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """Returns the vocabulary of a model with `size` logits, made once."""
    sizes = _KNOWN.setdefault(tokenizer, {})
    if size not in sizes:
        sizes[size] = Vocabulary(tokenizer, size)
    return sizes[size]


def _by_bytes(pieces: list[bytes]) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    for token, data in enumerate(pieces):
        if data:
            found.setdefault(data, []).append(token)
    return found
