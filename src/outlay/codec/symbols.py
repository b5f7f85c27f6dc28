"""Any bytes as symbols of a language model's alphabet: its vocabulary, and the 256 bytes.

Tokenizers lose bytes: some have no token for a byte, some normalize. So what does not come back exactly from the bytes
of its tokens is written byte by byte, and so is what is not UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from outlay.models.tokenizer import Tokenizer

PIECE = 1 << 16  # characters that are tokenized at once, at most
_INVALID = re.compile("[\udc80-\udcff]+")  # what "surrogateescape" makes of bytes that are not UTF-8


def symbols_of(data: bytes, tokenizer: Tokenizer, vocab: int) -> list[int]:
    """Returns the symbols of some bytes.

    Args:
        data: Any bytes.
        tokenizer: The model's tokenizer.
        vocab: The size of the model's vocabulary: byte b is the symbol vocab + b.
    """
    symbols: list[int] = []
    for text, valid in _pieces(data.decode(errors="surrogateescape")):
        if valid:
            symbols += _text_symbols(text, tokenizer, vocab)
        else:
            symbols += [vocab + byte for byte in text.encode(errors="surrogateescape")]
    return symbols


def bytes_of(symbols: list[int], tokenizer: Tokenizer, vocab: int) -> bytes:
    """Returns the bytes of symbols."""
    return b"".join(tokenizer.bytes_of(symbol) if symbol < vocab else bytes([symbol - vocab]) for symbol in symbols)


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Yields the parts of a text that are UTF-8, in pieces that end before a space, and those that are not."""
    at = 0
    for invalid in _INVALID.finditer(text):
        yield from _valid_pieces(text[at : invalid.start()])
        yield invalid[0], False
        at = invalid.end()
    yield from _valid_pieces(text[at:])


def _valid_pieces(text: str) -> Iterator[tuple[str, bool]]:
    at = 0
    while at < len(text):
        end = at + PIECE
        if end < len(text):
            last = max(text.rfind(" ", at + PIECE // 2, end), text.rfind("\n", at + PIECE // 2, end))
            end = last if last > at else end
        yield text[at:end], True
        at = end


def _text_symbols(text: str, tokenizer: Tokenizer, vocab: int) -> list[int]:
    """Returns the tokens of a text where they give it back exactly; else halves it, down to characters in bytes."""
    symbols: list[int] = []
    waiting = [text]
    while waiting:
        part = waiting.pop()
        tokens = _exact_tokens(part, tokenizer, vocab)
        if tokens is not None:
            symbols += tokens
        elif len(part) == 1:
            symbols += [vocab + byte for byte in part.encode()]
        else:
            middle = _middle(part)
            waiting += [part[middle:], part[:middle]]
    return symbols


def _exact_tokens(text: str, tokenizer: Tokenizer, vocab: int) -> list[int] | None:
    """Returns the tokens of a text whose bytes are the text's; None where there are none."""
    data = text.encode()
    spelled = [text, text[1:]] if tokenizer.strips_first_space and text[:1] == " " else [text]
    for each in spelled:  # a tokenizer that adds a space before the first word is given a text without its own
        tokens = tokenizer.encode(each)
        if all(token < vocab for token in tokens) and b"".join(map(tokenizer.bytes_of, tokens)) == data:
            return tokens
    return None


def _middle(text: str) -> int:
    """Returns where to halve a text: before the space that is nearest to its middle, if one is near."""
    half, reach = len(text) // 2, max(1, len(text) // 4)
    before = max(text.rfind(" ", half - reach, half), text.rfind("\n", half - reach, half))
    after = min(
        (at for at in (text.find(" ", half, half + reach), text.find("\n", half, half + reach)) if at > 0), default=-1
    )
    near = [at for at in (before, after) if 0 < at < len(text)]
    return min(near, key=lambda at: abs(at - half)) if near else half
