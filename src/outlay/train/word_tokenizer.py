"""Tokenizers of small models: BPE over bytes in which chosen words are one token each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

SPACE = "\u0120"  # what a space is written as, over bytes


def words_of(texts: Iterable[str]) -> list[str]:
    """Returns the words of texts as BPE over bytes cuts them, each once, in order."""
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return sorted({piece for text in texts for piece, _ in cut.pre_tokenize_str(text)})


def word_tokenizer(words: Sequence[str], special: Sequence[str]) -> tokenizers.Tokenizer:
    """Returns a tokenizer with a token for each word. Its merges spell a word from the beginning.

    Any other text can be written too, down to bytes.

    Args:
        words: Words as `words_of` gives them.
        special: Special tokens, which come last.
    """
    merges = dict.fromkeys((word[:end], word[end]) for word in words for end in range(1, len(word)))
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    tokenizer = tokenizers.Tokenizer(models.BPE({piece: token for token, piece in enumerate(pieces)}, list(merges)))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special])
    return tokenizer
