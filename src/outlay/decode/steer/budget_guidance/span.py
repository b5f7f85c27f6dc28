"""The thinking span of a text: where its tags stand, and how many tokens lie between them."""

from __future__ import annotations

from collections.abc import Sequence

from outlay.models.reasoning import Tags, thinks_already
from outlay.models.tokenizer import Tokenizer


class ThinkingSpan:
    """Follows a text token by token through its thinking span.

    The span begins behind the opening tag, which the prompt may end with, and ends with the last token of the closing
    tag; a tag that is quoted later opens nothing. Tags are matched on bytes, however the tokenizer cuts them. `tokens`
    counts the span's tokens, those of the closing tag included; `inside` tells whether the next token is one of them.

    Args:
        tokenizer: The model's.
        tags: What stands around the span. Without an opening tag it begins with the text.
        prompt: Token ids of the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, tags: Tags, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._opening, self._closing = tags.opening.encode(), tags.closing.encode()
        self.inside = not tags.opening or thinks_already(tokenizer, tags, prompt)
        self._may_open = not self.inside
        self._read = b""  # before the span all of the text, inside its end
        self._newline = False
        self.tokens = 0

    def push(self, token: int) -> None:
        """Reads the next token of the text."""
        if not self.inside and not self._may_open:
            return
        piece = self._piece(token)
        self._read += piece
        if self.inside:
            self.tokens += 1
            self._newline = b"\n" in piece
            self.inside = self._closing not in self._read
            self._read = self._read[1 - len(self._closing) :] if len(self._closing) > 1 else b""
        else:
            begin = self._read.lstrip()
            self.inside = begin.startswith(self._opening)
            self._may_open = not self.inside and self._opening.startswith(begin)
            if self.inside:
                self._read = b""

    def is_due(self, cadence: str | int) -> bool:
        """Tells whether the next token is guided: a paragraph's first, every one, every `cadence`-th, or none."""
        if not self.inside or cadence == "never":
            return False
        if isinstance(cadence, int):
            return self.tokens % cadence == 0
        return cadence == "every" or self.tokens == 0 or self._newline

    def rest_of_closing(self) -> list[int]:
        """Returns the tokens that complete the closing tag, of which the text may have written the beginning."""
        lengths = range(len(self._closing) - 1, -1, -1)
        begun = next(length for length in lengths if self._read.endswith(self._closing[:length]))
        rest = self._closing[begun:]
        tokens = self._tokenizer.encode(rest.decode(errors="ignore"), special=True)
        if b"".join(map(self._piece, tokens)) == rest:
            return tokens
        return self._tokenizer.encode(self._closing.decode(), special=True)  # a token of it would begin with a space

    def _piece(self, token: int) -> bytes:
        return self._tokenizer.name_of(token).encode() or self._tokenizer.bytes_of(token)


def closing_tokens(tokenizer: Tokenizer, tags: Tags) -> int:
    """Returns how many tokens the closing tag takes."""
    return len(tokenizer.encode(tags.closing, special=True))
