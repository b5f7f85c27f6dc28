"""Text to tokens and back: a `tokenizers` tokenizer with its chat template, and text that grows as tokens arrive."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import tokenizers

from outlay.errors import UsageError
from outlay.models.chat import ChatTemplate, Message


class Tokenizer:
    """Converts text to token ids and back.

    Attributes:
        eos_token_ids: tokens that end a reply.
        bos_token_id: token that begins a text, None if there is none.
        special_token_ids: tokens that write no text.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        eos_token_ids: Iterable[int] = (),
        bos_token_id: int | None = None,
        template: ChatTemplate | None = None,
    ) -> None:
        inner.no_truncation()
        inner.no_padding()
        self.inner = inner
        self.eos_token_ids = tuple(eos_token_ids)
        self.bos_token_id = bos_token_id
        self.template = template
        added = inner.get_added_tokens_decoder()
        self.special_token_ids = frozenset(token for token, entry in added.items() if entry.special)
        self._special_text = _any_of(entry.content for entry in added.values() if entry.special)
        self._added = {token: entry.content for token, entry in added.items()}
        self._bytes = dict.fromkeys(self.special_token_ids, b"")  # of the tokens that were decoded so far

    @property
    def vocab_size(self) -> int:
        """Number of known tokens; a model's logits may have a few more."""
        return self.inner.get_vocab_size(with_added_tokens=True)

    @property
    def has_chat_template(self) -> bool:
        """Whether `render_chat` can be used."""
        return self.template is not None

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Returns the tokens of a text alone.

        Args:
            text: the text.
            special: whether special tokens that are spelled out in it become special tokens.
        """
        plain = not special and self._special_text is not None and self._special_text.search(text)
        return (self._plain if plain else self.inner).encode(text, add_special_tokens=False).ids

    def encode_prompt(self, text: str, special: bool = False) -> list[int]:
        """Returns the tokens of a text as a prompt, after the ones that the model expects first (Llama's <s>)."""
        return self._prefix + self.encode(text, special)

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of `tokens`, without special tokens; bytes that are not UTF-8 become U+FFFD."""
        stream = self.decoder_stream()
        return "".join([stream.push(token) for token in tokens]) + stream.flush()

    def decoder_stream(self) -> DecoderStream:
        """Returns a decoder that takes token by token; its chunks join to what `decode` returns."""
        return DecoderStream(self)

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Returns the tokens of a conversation in the model's own format.

        Args:
            messages: mappings with "role" and "content".
            add_generation_prompt: whether the text ends where the model's reply begins.

        Raises:
            UsageError: if the model has no chat template, or the template refuses the messages.
        """
        if self.template is None:
            raise UsageError("this model has no chat template: give it a plain prompt (chat=False)")
        return self.encode(self.template.render(messages, add_generation_prompt), special=True)

    def bytes_of(self, token: int) -> bytes:
        """Returns the bytes of a token; b"" for special tokens and unknown ids."""
        known = self._bytes.get(token)
        if known is None:
            piece = self.inner.id_to_token(token) if 0 <= token < 1 << 32 else None
            known = self._bytes[token] = b"" if piece is None else self._piece_bytes(piece)
        return known

    def name_of(self, token: int) -> str:
        """Returns the name of an added token, such as "<|im_end|>"; "" for other tokens."""
        return self._added.get(token, "")

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self.inner.to_str())
        plain.encode_special_tokens = True
        return plain

    @cached_property
    def _prefix(self) -> list[int]:
        return self.inner.encode("", add_special_tokens=True).ids

    @cached_property
    def _decoder(self) -> str:
        return self.inner.decoder.__getstate__().decode() if self.inner.decoder is not None else ""

    @cached_property
    def strips_first_space(self) -> bool:
        """Whether decoding a sequence drops the space before its first word."""
        return "Metaspace" in self._decoder or '"Strip"' in self._decoder

    @cached_property
    def _piece_bytes(self) -> Callable[[str], bytes]:
        if "ByteLevel" in self._decoder:
            return _byte_level
        if "ByteFallback" in self._decoder or "Metaspace" in self._decoder:
            return _sentencepiece
        raise UsageError("this tokenizer does not decode by ByteLevel, ByteFallback or Metaspace, as outlay does")


class DecoderStream:
    """Decodes token by token, holding back bytes that do not make a character yet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strips_first_space

    def push(self, token: int) -> str:
        """Returns the text that a token adds."""
        data = self._tokenizer.bytes_of(token)
        if self._strip and data:
            data, self._strip = data.removeprefix(b" "), False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """Returns U+FFFD for a character that was never finished, else nothing."""
        return self._utf8.decode(b"", final=True)


def load_tokenizer_json(text: str) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a `tokenizer.json`. Raises `UsageError` if it is not valid."""
    try:
        json.loads(text)
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:
        # `tokenizers` raises this very class, and no other, for whatever it cannot read.
        if type(error) is not Exception and not isinstance(error, ValueError):
            raise
        raise UsageError(f"tokenizer.json is not valid: {' '.join(str(error).split())[:200]}") from None


def _any_of(words: Iterable[str]) -> re.Pattern[str] | None:
    pattern = "|".join(re.escape(word) for word in words if word)
    return re.compile(pattern) if pattern else None


def _byte_alphabet() -> dict[str, int]:
    """Returns GPT-2's letters for bytes: printable bytes are themselves, the others are code points from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level(piece: str) -> bytes:
    if all(letter in _BYTES for letter in piece):
        return bytes(_BYTES[letter] for letter in piece)
    return piece.encode()


def _sentencepiece(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()
