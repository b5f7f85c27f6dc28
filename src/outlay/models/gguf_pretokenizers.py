"""How text is split into words before BPE, by the names that llama.cpp gives to pre-tokenizers.

A split is a regular expression: its matches, and what lies between them, become pieces, which the next split divides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokenizer:
    """What a tokenizer does before it merges."""

    splits: tuple[str, ...]
    """Regular expressions, one after the other."""

    ignore_merges: bool = False
    """Whether a word that is a token needs no merges."""

    add_bos: bool = False
    """Whether a text begins with a token for that, unless the file says otherwise."""

    nfc: bool = False
    """Whether characters are composed first."""

    byte_level: bool = True
    """Whether tokens are written in GPT-2's letters for bytes; else in UTF-8, with U+2581 for spaces."""


def _characters(ranges: str) -> str:
    """Returns characters as a class's inside: hexadecimal numbers, two of them with a hyphen for a range."""
    bounds = [part.split("-") for part in ranges.split()]
    return "".join("-".join(rf"\x{{{bound}}}" for bound in part) for part in bounds)


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s+(?!\S)|\s+"
_LINES = rf"\s*[\r\n]+|{_SPACES}"
_DIGIT, _DIGITS = r"\p{N}", r"\p{N}{1,3}"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _cased(after: str = "", without: str = "") -> str:
    """Returns words that end where lower case turns to upper case, with what may follow, without some characters."""
    before, upper, lower = r"[^\r\n\p{L}\p{N}]?", f"[{_UPPER}{without}]", f"[{_LOWER}{without}]"
    return f"{before}{upper}*{lower}+{after}|{before}{upper}+{lower}*{after}"


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = f"{_CONTRACTION}|{_WORD}|{_DIGITS}|{_MARKS}|{_LINES}"
_QWEN2 = f"{_CONTRACTION}|{_WORD}|{_DIGIT}|{_MARKS}|{_LINES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|{_DIGIT}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}"
)
_PATH_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT4O = f"{_cased(_CONTRACTION + '?')}|{_DIGITS}|{_PATH_MARKS}|{_LINES}"
_TEKKEN = f"{_cased()}|{_DIGIT}|{_PATH_MARKS}|{_LINES}"
_NOT_HAN = r"&&[^\p{Han}]"
_KIMI = rf"\p{{Han}}+|{_cased(_CONTRACTION + '?', _NOT_HAN)}|{_DIGITS}|{_MARKS}|{_LINES}"
_JAIS2_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s"
_JAIS2 = rf"{_CONTRACTION}|{_WORD}|{_DIGITS}|{_MARKS}|\s*[\r\n]+|{_JAIS2_SPACES}"
_BAILING = rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|{_DIGIT}|{_MARKS}|\s*[\r\n]|{_SPACES}"
_SEED_CODER = rf"{_CONTRACTION}|{_WORD}|{_DIGIT}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}"
_EXAONE_MOE = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|{_DIGIT}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACES}"
)
_LINE_BREAKS = r"\n+"
_THREE_DIGITS = "[0-9][0-9][0-9]"
_THREES_FROM_THE_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_BLOOM = rf" ?[^(\s|.,!?{_characters('2026 3002 FF0C 3001 964 6D4 60C')})]+"

_HAN_AND_KANA = f"[{_characters('4E00-9FA5 3040-309F 30A0-30FF')}]+"
_HAN_TO_HANGUL = f"[{_characters('4E00-9FA5 800-4E00 AC00-D7FF')}]+"
_ASCII_WORD = r"[!-/:-@\[-`{-~][A-Za-z]+"
_DEEPSEEK_WORDS = rf"{_ASCII_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
_DEEPSEEK3 = rf"{_DEEPSEEK_WORDS}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_LINES}"
_SPARK = rf"{_DEEPSEEK_WORDS}| ?[\p{{P}}\p{{S}}]+|[\r\n]|{_SPACES}"
_DEEPSEEK_LETTERS = _characters(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1"
    " 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A"
    " 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4"
    " 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128"
    " 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D"
    " A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F"
    " 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_DEEPSEEK_MARKS = rf"\s?[!-/:-~{_characters('FF01-FF0F FF1A-FF5E 2018-201F 3000-3002')}]+"
_YOUTU_SCRIPTS = "|".join(
    f"[{_characters(script)}]+"
    for script in (
        "AC00-D7A3 3131-318E",
        "FF01 2026 201C 201D 2018 2019 2014 FF1A FF1B FF0C 3001-303F FE30-FE4F",
        "3105-312F",
        "4E00-9FA5 3040-309F 30A0-30FF",
    )
)
_AFMOE_SCRIPTS = _characters(
    "4E00-9FFF 3400-4DBF F900-FAFF 3040-309F 30A0-30FF FF65-FF9F 2F00-2FDF E40-E7F E80-EFF 1780-17FF 1000-109F"
    " AA60-AA7F A9E0-A9FF AC00-D7AF 1100-11FF"
)
_CHAMELEON = (
    "<sentinel:[0-9]+>",
    "IMGIMG[A-I]{1,4}Z",
    r"[\t\n]|    |  ",
    _DIGIT,
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
)
_FALCON_MARKS = r"[\p{P}$+<=>^~|`]+"
_DEFAULT_MARKS = r"[\p{P}$+<=>^~|]+"


def _named() -> Iterator[tuple[str, PreTokenizer]]:
    """Yields names, divided by spaces, and what they stand for."""
    yield "default", PreTokenizer((_DEFAULT_MARKS, _GPT2, r"\p{N}+", _THREE_DIGITS))
    yield "gpt-2 phi-2 olmo mpt jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum", PreTokenizer((_GPT2,))
    yield (
        "modern-bert jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe",
        PreTokenizer((_GPT2,)),
    )
    yield "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", PreTokenizer((_DIGIT, _GPT2))
    yield "falcon", PreTokenizer((_FALCON_MARKS, _GPT2, _THREE_DIGITS))
    yield "chameleon", PreTokenizer(_CHAMELEON, add_bos=True)
    yield "bloom poro-chat gpt3-finnish", PreTokenizer((_BLOOM,))
    yield "viking", PreTokenizer((_BLOOM, _DIGIT))

    llama3 = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
    yield "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", llama3
    yield "smaug-bpe dbrx glm4 chatglm-bpe", PreTokenizer((_LLAMA3,))
    yield "jais-2", PreTokenizer((_JAIS2,))
    yield "minicpm5", PreTokenizer((_DIGITS, _LLAMA3.replace(_DIGITS, r"\p{N}+")), ignore_merges=True)

    yield "qwen2 deepseek-r1-qwen megrez kormo f2llmv2", PreTokenizer((_QWEN2,), nfc=True)
    yield "stablelm2 hunyuan solar-open grok-2", PreTokenizer((_QWEN2,))
    yield "qwen35", PreTokenizer((_QWEN35,), nfc=True)
    yield "ufakzeka", PreTokenizer((_QWEN2.removeprefix(f"{_CONTRACTION}|"),))
    yield "laguna", PreTokenizer((_LINE_BREAKS, _QWEN2))
    yield "seed-coder", PreTokenizer((_SEED_CODER,))
    yield "bailingmoe bailingmoe2 llada-moe", PreTokenizer((_BAILING,))
    yield "exaone-moe", PreTokenizer((_EXAONE_MOE,))

    yield "gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenizer((_GPT4O,))
    yield "granite-embed-multi-97m", PreTokenizer((_GPT4O,), ignore_merges=True)
    yield "tekken", PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True)
    yield "tiny_aya cohere2moe", PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))
    yield "youtu", PreTokenizer((_YOUTU_SCRIPTS, _GPT4O.replace(_DIGITS, _DIGIT)), ignore_merges=True)
    yield "kimi-k2", PreTokenizer((_KIMI,))

    yield (
        "deepseek-llm",
        PreTokenizer((r"[\r\n]", rf"\s?[{_DEEPSEEK_LETTERS}]+", _DEEPSEEK_MARKS, r"\s+$", _HAN_TO_HANGUL, r"\p{N}+")),
    )
    yield "deepseek-coder", PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_TO_HANGUL, _DIGIT))
    yield "deepseek-v3 hunyuan-dense joyai-llm hy_v4", PreTokenizer((_DIGITS, _HAN_AND_KANA, _DEEPSEEK3))
    yield "spark2_5", PreTokenizer((_DIGITS, _HAN_AND_KANA, _SPARK, _DIGIT))
    yield "afmoe", PreTokenizer((_THREES_FROM_THE_RIGHT, f"[{_AFMOE_SCRIPTS}]+", _DEEPSEEK3))
    yield "superbpe", PreTokenizer((_THREES_FROM_THE_RIGHT,))
    yield (
        "gemma4 granite-embed-multi-311m sarvam-moe",
        PreTokenizer((_LINE_BREAKS,), ignore_merges=True, byte_level=False),
    )


PRE_TOKENIZERS = {name: pre for names, pre in _named() for name in names.split()}
