"""Text to tokens and back: a `tokenizers` tokenizer with its chat template, and text that grows as tokens arrive."""

from __future__ import annotations

import codecs
import json
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from outlay.errors import UsageError
from outlay.messages import Message
from outlay.models.chat import ChatTemplate, Tools
from outlay.models.content import MESSAGE, marks_of


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
        control: Iterable[int] = (),
    ) -> None:
        """Takes a tokenizer; `control` are tokens that no text spells out, such as a mask, whatever its file says."""
        self.eos_token_ids = tuple(eos_token_ids)
        inner = _with_special(inner, {*self.eos_token_ids, bos_token_id, *control})
        inner.no_truncation()
        inner.no_padding()
        self.inner = inner
        self.bos_token_id = bos_token_id
        self.template = template
        added = inner.get_added_tokens_decoder()
        self.special_token_ids = frozenset(token for token, entry in added.items() if entry.special)
        self._special = {entry.content: entry for entry in added.values() if entry.special}
        self._special_text = _any_of(self._special)
        # Then a special token may be spelled in ways that only `tokenizers` sees.
        self._normalizes = inner.normalizer is not None and any(entry.normalized for entry in self._special.values())
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
            special: whether special tokens that are spelled out in it become special tokens. Those that a message
                spells out, as the marks of a `Content` tell, never do.
        """
        spelled = list(self._spelled(text))
        owned = [(at, content) for at, content, own in spelled if own and special]
        if len(owned) == len(spelled) and not self._normalizes:
            return self.inner.encode(str.__str__(text), add_special_tokens=False).ids
        return self._literal.encode(text, owned)

    def unreadable(self, text: str) -> list[str]:
        """Returns the characters of a text, each once, that no token stands for; `encode` drops or garbles them."""
        return [letter for letter in dict.fromkeys(text) if not self._reads(letter)]

    def encode_prompt(self, text: str, special: bool = False) -> list[int]:
        """Returns the tokens of a text as a prompt, after the ones that the model expects first (Llama's <s>)."""
        return self._prefix + self.encode(text, special)

    def encode_input(self, text: str, special: bool = False) -> list[int]:
        """Returns the tokens of a text as the input of an encoder, with those that the tokenizer puts around it."""
        before, after = self._around
        return [*before, *self.encode(text, special), *after]

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of `tokens`, without special tokens; bytes that are not UTF-8 become U+FFFD."""
        stream = self.decoder_stream()
        return "".join([stream.push(token) for token in tokens]) + stream.flush()

    def decoder_stream(self) -> DecoderStream:
        """Returns a decoder that takes token by token; its chunks join to what `decode` returns."""
        return DecoderStream(self)

    def chat_text(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tools: Tools | None = None,
        switches: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """Returns a conversation in the model's own format, as `ChatTemplate.render` does.

        Raises:
            UsageError: if the model has no chat template, or the template refuses the messages.
        """
        if self.template is None:
            raise UsageError("this model has no chat template: give it a plain prompt (chat=False)")
        return self.template.render(
            messages,
            add_generation_prompt,
            tools=tools,
            switches=switches,
            continue_final_message=continue_final_message,
        )

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Returns the tokens of `chat_text`, in which special tokens come from the template alone."""
        return self.encode(self.chat_text(messages, add_generation_prompt), special=True)

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

    def places_of(self, name: str, text: str) -> list[int]:
        """Returns where a text has a special token of a name that no message spelled out."""
        return [at for at, content, own in self._spelled(text) if own and content == name]

    def _spelled(self, text: str) -> Iterator[tuple[int, str, bool]]:
        """Yields where a special token is spelled out, what it is, and whether no message wrote any of it."""
        if self._special_text is None:
            return
        marks, at = marks_of(text), 0
        while found := self._special_text.search(text, at):
            own = MESSAGE not in marks[found.start() : found.end()]
            yield found.start(), found[0], own
            at = found.end() if own else found.start() + 1

    @cached_property
    def _literal(self) -> _LiteralTokenizer:
        return _LiteralTokenizer(self.inner, self._special)

    def _reads(self, letter: str) -> bool:
        if "ByteLevel" in self._decoder:
            normalized = self.inner.normalizer.normalize_str(letter) if self.inner.normalizer is not None else letter
            return self._missing_bytes.isdisjoint(normalized.encode())
        unknown = getattr(self.inner.model, "unk_token", None) or "<unk>"
        return self.inner.token_to_id(unknown) not in self.inner.encode(letter, add_special_tokens=False).ids

    @cached_property
    def _missing_bytes(self) -> frozenset[int]:
        return frozenset(byte for letter, byte in _BYTES.items() if self.inner.token_to_id(letter) is None)

    @cached_property
    def _prefix(self) -> list[int]:
        return self.inner.encode("", add_special_tokens=True).ids

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer puts before and after a text."""
        bare, whole = (self.inner.encode("a", add_special_tokens=special).ids for special in (False, True))
        starts = range(len(whole) - len(bare) + 1)
        at = next(place for place in starts if whole[place : place + len(bare)] == bare)
        return whole[:at], whole[at + len(bare) :]

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


class _LiteralTokenizer:
    """Reads special tokens as the letters that they are spelled with, but for those whose places are given.

    It is a copy of the tokenizer which knows each special token under a second name that nobody can guess, so that
    texts are cut, normalized and encoded exactly as the original does it.
    """

    def __init__(self, inner: tokenizers.Tokenizer, special: Mapping[str, tokenizers.AddedToken]) -> None:
        self._inner = tokenizers.Tokenizer.from_str(inner.to_str())
        self._inner.encode_special_tokens = True
        nonce = secrets.randbits(64)
        self._names = {content: f"\ufdd0{nonce}-{number}\ufdd1" for number, content in enumerate(special)}
        self._inner.add_tokens([
            tokenizers.AddedToken(
                self._names[content], special=False, normalized=token.normalized, single_word=token.single_word,
                lstrip=token.lstrip, rstrip=token.rstrip,
            )
            for content, token in special.items()
        ])  # fmt: skip
        ids = {entry.content: token for token, entry in inner.get_added_tokens_decoder().items()}
        self._ids = {self._inner.token_to_id(name): ids[content] for content, name in self._names.items()}

    def encode(self, text: str, special: Iterable[tuple[int, str]]) -> list[int]:
        """Returns the tokens of a text, in which `special` are the places and texts of special tokens, in order."""
        parts, end = [], 0
        for at, content in special:
            parts += [text[end:at], self._names[content]]
            end = at + len(content)
        ids = self._inner.encode("".join([*parts, text[end:]]), add_special_tokens=False).ids
        return [self._ids.get(token, token) for token in ids]


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


def _with_special(inner: tokenizers.Tokenizer, control: Collection[int | None]) -> tokenizers.Tokenizer:
    """Returns the tokenizer with these added tokens as special ones; some files do not say that they are."""
    if all(token.special for id, token in inner.get_added_tokens_decoder().items() if id in control):
        return inner
    state = json.loads(inner.to_str())
    for entry in state["added_tokens"]:
        entry["special"] = entry["special"] or entry["id"] in control
    return tokenizers.Tokenizer.from_str(json.dumps(state))


def _any_of(words: Iterable[str]) -> re.Pattern[str] | None:
    """Returns a pattern that finds the longest of the words at the first place that has one."""
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True) if word)
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
