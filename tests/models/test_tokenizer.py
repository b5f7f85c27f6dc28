"""Tokens and text: the default model's tokenizer against `transformers`', streaming, chat templates, SentencePiece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from outlay.errors import UsageError
from outlay.models.chat import ChatTemplate, template_source
from outlay.models.gguf_file import GgufFile
from outlay.models.gguf_pretokenizers import PRE_TOKENIZERS
from outlay.models.gguf_tokenizer import gguf_tokenizer
from outlay.models.tokenizer import Tokenizer

TEXTS = [
    "Hello, world!",
    " leading and trailing ",
    "tabs\tand\nnew\r\nlines\n\n\n  indented\n\ttoo",
    "def f(x):\n    return x ** 2 + 3.14159  # comment\n",
    "I'll say it's they've we'd DON'T",
    "1234567890 12,345.67 3x4=12 0x1F",
    "naïve façade Ærøskøbing Straße Ελληνικά Русский",
    "你好,世界。今天天气很好!",
    "日本語のテキスト 한국어 텍스트 ไทย हिन्दी العربية",
    "😀 👨‍👩‍👧‍👦 🇫🇷 👍🏽 ✨",
    "a" * 100 + "    " * 10 + "!?" * 20,
    '<html><body class="x">&amp;</body></html>',
    "e\u0301 \u00e9 \u200b \ufeff \u00a0 \u2003 \x00 \x7f",
    "SELECT * FROM t WHERE a='b'; -- \\n \\\\",
    "",
]
SPECIAL = ["<|im_start|>user\nHi<|im_end|>\n", "<|endoftext|>", "a<|im_end|>b <|im_end|> c", "<repo_name>x<file_sep>"]
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why? 🙂"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "Really?"},
]


@pytest.fixture(scope="session")
def ours(default_path: Path) -> Tokenizer:
    metadata = GgufFile(default_path).metadata
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    template = ChatTemplate(metadata["tokenizer.chat_template"], special)
    return Tokenizer(gguf_tokenizer(metadata), eos_token_ids=(2,), bos_token_id=1, template=template)


@pytest.mark.parametrize("text", TEXTS + SPECIAL)
def test_tokens_are_those_of_transformers(text: str, ours: Tokenizer, transformers_tokenizer: Any) -> None:
    expected = transformers_tokenizer.encode(text, add_special_tokens=False)
    assert ours.encode(text, special=True) == expected
    if text not in SPECIAL:
        assert ours.encode(text) == expected
    text = transformers_tokenizer.decode(expected, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert ours.decode(expected) == text


def test_digits_of_every_script_stand_alone(ours: Tokenizer) -> None:
    # As SmolLM2's own tokenizer.json has it; what `transformers` makes of a GGUF file does not cut at these.
    assert ours.encode("٣٤½Ⅷ") == [token for digit in "٣٤½Ⅷ" for token in ours.encode(digit)]


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_survives(ours: Tokenizer, text: str) -> None:
    # The vocabulary lacks some bytes: those of a few control characters, and of characters beyond U+3FFFF.
    text = "".join(letter for letter in text if ours.decode(ours.encode(letter)) == letter)
    assert ours.decode(ours.encode(text)) == text


@given(st.lists(st.integers(0, 49151), max_size=30))
@settings(max_examples=200, deadline=None)
def test_pieces_join_to_what_decode_returns(ours: Tokenizer, transformers_tokenizer: Any, tokens: list[int]) -> None:
    stream = ours.decoder_stream()
    joined = "".join([stream.push(token) for token in tokens]) + stream.flush()
    assert joined == ours.decode(tokens)
    assert joined == transformers_tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_half_a_character_is_held_back(ours: Tokenizer) -> None:
    tokens = ours.encode("🦜")
    assert len(tokens) > 1
    stream = ours.decoder_stream()
    pieces = [stream.push(token) for token in tokens]
    assert pieces == [""] * (len(tokens) - 1) + ["🦜"]
    stream = ours.decoder_stream()
    assert stream.push(tokens[0]) == ""
    assert stream.flush() == "\ufffd"


def test_special_tokens_in_plain_text_are_letters(ours: Tokenizer) -> None:
    assert ours.encode("<|im_end|>", special=True) == [2]
    letters = ours.encode("<|im_end|>")
    assert 2 not in letters
    assert ours.decode(letters) == "<|im_end|>"


def test_ids_that_no_token_has_are_no_text(ours: Tokenizer) -> None:
    assert ours.decode([10**6, -1]) == ""
    assert ours.vocab_size == 49152


def test_chats_read_as_transformers_writes_them(ours: Tokenizer, transformers_tokenizer: Any) -> None:
    for messages in (MESSAGES, MESSAGES[1:2]):
        for prompt in (True, False):
            expected = transformers_tokenizer.apply_chat_template(
                messages, add_generation_prompt=prompt, return_dict=False
            )
            assert ours.render_chat(messages, add_generation_prompt=prompt) == expected


def test_the_default_of_several_templates_is_taken() -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert [template_source(entry) for entry in (named, "s", None)] == ["d", "s", None]


PIECES = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
WORDS = ["\u2581", "h", "e", "l", "o", "w", "r", "d", "he", "ll", "llo", "hello", "\u2581hello", "\u2581w", "or", "ld"]
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [*PIECES, *WORDS],
    "tokenizer.ggml.scores": [0.0] * len(PIECES) + [-float(i) for i in range(len(WORDS))],
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(WORDS),
    "tokenizer.ggml.bos_token_id": 1,
}


def test_sentencepiece_joins_by_score_and_falls_back_to_bytes() -> None:
    tokenizer = Tokenizer(gguf_tokenizer(SENTENCEPIECE), bos_token_id=1)
    pieces = [tokenizer.inner.id_to_token(token) for token in tokenizer.encode("hello world é")]
    assert pieces == ["\u2581hello", "\u2581w", "or", "ld", "\u2581", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("hello world é")) == "hello world é"
    assert tokenizer.encode_prompt("hello") == [1, *tokenizer.encode("hello")]
    assert tokenizer.encode_prompt("<s>", special=True) == [1, 1]


@given(st.lists(st.integers(0, len(PIECES) + len(WORDS) - 1), max_size=20))
def test_sentencepiece_decodes_as_tokenizers_does(tokens: list[int]) -> None:
    inner = gguf_tokenizer(SENTENCEPIECE)
    words = [token for token in tokens if token >= len(PIECES)]
    assert Tokenizer(inner).decode(words) == inner.decode(words)


def test_metaspace_decoders_are_read() -> None:
    inner = tokenizers.Tokenizer(models.BPE(vocab={"\u2581hi": 0, "\u2581you": 1}, merges=[]))
    inner.decoder = decoders.Metaspace()
    inner.normalizer = normalizers.NFC()
    assert Tokenizer(inner).decode([0, 1]) == "hi you"


def test_decoders_that_are_not_read_are_refused() -> None:
    inner = tokenizers.Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "##x": 1}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()
    with pytest.raises(UsageError, match="ByteLevel"):
        Tokenizer(inner).decode([1])


def bpe(pre: str, **more: Any) -> dict[str, Any]:
    """A GGUF file's metadata of a tokenizer that has a token for each byte, and a few more."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    if not PRE_TOKENIZERS[pre].byte_level:
        alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet += [chr(byte) for byte in range(33, 127)] + ["\u2581"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*alphabet, "12", "123", "abc", "<s>"],
        "tokenizer.ggml.merges": ["1 2", "12 3"],
        "tokenizer.ggml.bos_token_id": len(alphabet) + 3,
    } | more


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_pretokenizer_keeps_all_text(pre: str) -> None:
    tokenizer = Tokenizer(gguf_tokenizer(bpe(pre, **{"tokenizer.ggml.add_bos_token": False})))
    for text in TEXTS:
        if not PRE_TOKENIZERS[pre].nfc or "e\u0301" not in text:
            assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.inner.token_to_id("abc") in tokenizer.encode("abc")) == PRE_TOKENIZERS[pre].ignore_merges


@pytest.mark.parametrize(("pre", "begins"), [("gpt-2", False), ("llama-bpe", True)])
def test_a_text_begins_as_the_pretokenizers_models_begin_it(pre: str, begins: bool) -> None:
    metadata = bpe(pre)
    bos = metadata["tokenizer.ggml.bos_token_id"]
    assert (gguf_tokenizer(metadata).encode("1234").ids[0] == bos) == begins
    assert bos not in gguf_tokenizer(metadata | {"tokenizer.ggml.add_bos_token": False}).encode("1234").ids


def test_gguf_tokenizers_that_are_not_read_are_named() -> None:
    with pytest.raises(UsageError, match="no tokenizer"):
        gguf_tokenizer({})
    with pytest.raises(UsageError, match="'bert'"):
        gguf_tokenizer({"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["a"]})
    with pytest.raises(UsageError, match="'chatglm'"):
        gguf_tokenizer(
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.pre": "chatglm"}
        )
    with pytest.raises(UsageError, match="no merges"):
        gguf_tokenizer(
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.pre": "kimi-k2"}
        )


def test_a_broken_tokenizer_json_is_refused_in_one_line() -> None:
    from outlay.models.tokenizer import load_tokenizer_json

    for text in ("{", json.dumps({"version": "1.0"}), "[]"):
        with pytest.raises(UsageError) as caught:
            load_tokenizer_json(text)
        assert "\n" not in str(caught.value)
