"""Canonical tokenizations of byte strings: the tokens into which a tokenizer cuts what a text begins with.

How a tokenizer splits a text into words can depend on the character that follows, or that is not finished yet. So a
beginning has a tokenization for each kind of character that may come next: most have one, "x " and "don'" have more.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from tokenizers import models

from outlay.errors import UsageError
from outlay.models.load import Model

PROBE, PROBE_LETTERS = "a\u00e9 b\n1", "a\u00c3\u00a9\u0120b\u010a1"  # a text, and how BPE over bytes writes it
REMEMBERED = 1 << 16  # pieces of text whose tokens are kept
NEXT = ("", " ", "\n", "a", "e", "l", "A", "1", ".", "'", "\u0301")
"""What may follow a text, of each kind that splitting rules tell apart: the end, white space, letters (with those that
end "'ve" and "'ll"), digits, punctuation, apostrophes and combining marks."""

Path = tuple[int, ...]
"""Tokens from the beginning of a text."""
Pieces = tuple[str, ...]
"""A text as it is split into words, each byte of it a letter."""


class Ending(NamedTuple):
    """Bytes as the text that they are, and the beginning of a character that is not finished."""

    text: str
    rest: bytes


def ending_of(data: bytes) -> Ending:
    """Splits bytes before an unfinished last character; what is no UTF-8 before it becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return Ending(text, decoder.getstate()[0])


class Canonical:
    """Cuts bytes into the tokens of a tokenizer of the kind BPE over bytes.

    Raises:
        UsageError: For a model with a tokenizer of another kind, or one that changes the text before it is cut.
    """

    def __init__(self, model: Model) -> None:
        inner = model.tokenizer.inner
        splitter = inner.pre_tokenizer
        written = "".join(piece for piece, _ in splitter.pre_tokenize_str(PROBE)) if splitter is not None else ""
        if not isinstance(inner.model, models.BPE) or inner.normalizer is not None or written != PROBE_LETTERS:
            raise UsageError(
                f"anchored:level=byte reads tokenizers of the kind BPE over bytes that leave a text as it is; that of "
                f"{model.name} is none"
            )
        self._split = splitter.pre_tokenize_str
        self._bpe = lru_cache(REMEMBERED)(lambda piece: tuple(token.id for token in inner.model.tokenize(piece)))
        self.splits_words = len(self._split("a b")) == 2
        """Whether a space after a letter always begins a word."""

    def splits(self, data: bytes) -> list[Pieces]:
        """Returns the ways in which a text that begins with these bytes splits them into words, each once."""
        text, rest = ending_of(data)
        return list(dict.fromkeys(self._cut_split(text + letter, len(data)) for letter in endings(rest)))

    def path(self, pieces: Pieces, end: int) -> Path:
        """Returns the tokens of the first `end` bytes of a text that is split like this."""
        tokens, at = list[int](), 0
        for piece in pieces:
            tokens += self._bpe(piece[: end - at])
            at += len(piece)
            if at >= end:
                break
        return tuple(tokens)

    def _cut_split(self, text: str, end: int) -> Pieces:
        pieces, at = list[str](), 0
        for piece, _ in self._split(text):
            if at >= end:
                break
            pieces.append(piece[: end - at])
            at += len(piece)
        return tuple(pieces)


@lru_cache(None)
def endings(rest: bytes) -> Sequence[str]:
    """Returns what may follow a text, of each kind that splitting rules tell apart.

    Args:
        rest: The beginning of an unfinished character, which is then what follows: one of each Unicode category, white
            space apart.
    """
    if not rest:
        return NEXT
    size = 2 if rest[0] < 0xE0 else 3 if rest[0] < 0xF0 else 4
    missing, bits = size - len(rest), rest[0] & 0x7F >> size
    for byte in rest[1:]:
        bits = bits << 6 | byte & 0x3F
    found: dict[tuple[str, bool], str] = {}
    for point in range(bits << 6 * missing, min((bits + 1) << 6 * missing, 0x110000)):
        letter = chr(point)
        if not 0xD800 <= point < 0xE000 and letter.encode().startswith(rest):
            found.setdefault((unicodedata.category(letter), letter.isspace()), letter)
    return tuple(found.values())


@lru_cache(None)
def bytes_after(rest: bytes) -> tuple[bool, ...]:
    """Tells of each of the 256 bytes whether UTF-8 may go on with it after an unfinished character."""
    return tuple(_goes_on(rest + bytes([byte])) for byte in range(256))


def _goes_on(data: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(data)
    except UnicodeDecodeError:
        return False
    return bool(endings(decoder.getstate()[0]))  # a surrogate is refused at its last byte alone
