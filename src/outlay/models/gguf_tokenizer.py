"""The tokenizer that a GGUF file carries: BPE with merges, or SentencePiece's BPE with scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from outlay.errors import UsageError
from outlay.models.gguf_pretokenizers import PRE_TOKENIZERS, PreTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, _BYTE = 1, 2, 3, 4, 6


def gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Returns the tokenizer that a GGUF file's metadata describes.

    Raises:
        UsageError: if there is none, or it is of a kind that outlay does not read.
    """
    kind = metadata.get("tokenizer.ggml.model")
    pieces = metadata.get("tokenizer.ggml.tokens")
    if not kind or not pieces:
        raise UsageError("this GGUF file has no tokenizer")
    if kind in ("gpt2", "gemma4"):
        tokenizer = _bpe(metadata, pieces)
    elif kind == "llama":
        tokenizer = _sentencepiece(metadata, pieces)
    else:
        raise UsageError(f"tokenizer kind {kind!r} is not one that outlay reads from GGUF files (gpt2, gemma4, llama)")
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(pieces)
    added = []
    for piece, sort in zip(pieces, types, strict=True):
        if sort in (CONTROL, UNKNOWN):
            added.append(AddedToken(piece, special=True, normalized=False))
        elif sort == USER_DEFINED:
            added.append(AddedToken(piece, special=False, normalized=False))
    tokenizer.add_tokens(added)
    _add_beginning(tokenizer, metadata, pieces)
    return tokenizer


def _pre_tokenizer(metadata: Mapping[str, Any]) -> PreTokenizer:
    default = "gemma4" if metadata["tokenizer.ggml.model"] == "gemma4" else "default"
    name = metadata.get("tokenizer.ggml.pre", default)
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise UsageError(f"pre-tokenizer {name!r} is not one that outlay reads from GGUF files ({known})")
    return PRE_TOKENIZERS[name]


def _bpe(metadata: Mapping[str, Any], pieces: Sequence[str]) -> Tokenizer:
    pre = _pre_tokenizer(metadata)
    if "tokenizer.ggml.merges" not in metadata:
        raise UsageError("this GGUF file's tokenizer has no merges")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {piece: token for token, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.ignore_merges, byte_fallback=not pre.byte_level)
    tokenizer = Tokenizer(model)
    steps: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Split(Regex(split), "isolated") for split in pre.splits]
    if pre.byte_level:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        ends = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(ends)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], pieces: Sequence[str]) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if not scores:
        raise UsageError("this GGUF file's tokenizer has no scores")
    vocab = {piece: token for token, piece in enumerate(pieces)}
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(pieces)
    merges = list(_merges(vocab, pieces, scores, types))
    unknown = pieces[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "\u2581")]
    ends: list[decoders.Decoder] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend("\u2581"))
        ends.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(ends)
    return tokenizer


def _merges(
    vocab: Mapping[str, int], pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """Yields BPE merges in SentencePiece's order, which joins the neighbours whose joined piece scores best."""
    joinable = [token for token, sort in enumerate(types) if sort == NORMAL and len(pieces[token]) > 1]
    for token in sorted(joinable, key=lambda token: -scores[token]):
        piece = pieces[token]
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in pairs if left in vocab and right in vocab]
        yield from sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))


def _add_beginning(tokenizer: Tokenizer, metadata: Mapping[str, Any], pieces: Sequence[str]) -> None:
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    usual = metadata["tokenizer.ggml.model"] == "llama" or _pre_tokenizer(metadata).add_bos
    if bos is None or not metadata.get("tokenizer.ggml.add_bos_token", usual):
        return
    # In its own form a template may only name words without brackets or colons; ids may be any.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="BOS:0 $A:0", pair="BOS:0 $A:0 BOS:1 $B:1", special_tokens=[("BOS", bos)]
    )
