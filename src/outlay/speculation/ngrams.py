"""Which tokens follow which: a table of n-grams on disk, what is learned on top of it, and the text's own n-grams.

The table maps contexts of 1 to `order` - 1 tokens to what followed them in a corpus. It is sorted arrays in a
safetensors file, which the system maps into memory and shares between processes: nothing is read before it is needed.
Contexts are stored as 64-bit hashes; two are equal by chance in one of 10^7 tables of a million contexts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from outlay.errors import FailureError, UsageError
from outlay.models.tokenizer import Tokenizer

Successors = list[tuple[int, float]]  # tokens with their weights, the heaviest first, the lowest id among equals

REMEMBERED = 4096  # contexts that were looked up
_FACTOR = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


@cache
def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Returns the same string for tokenizers that give every text the same tokens."""
    pieces = sorted((token, piece) for piece, token in tokenizer.inner.get_vocab(with_added_tokens=True).items())
    return sha256("\0".join([f"{token} {piece}" for token, piece in pieces]).encode()).hexdigest()


def hash_context(tokens: Sequence[int]) -> int:
    """Returns the hash of a context, as a signed 64-bit integer."""
    key = 0
    for token in tokens:
        key = (key ^ (token + 1)) * _FACTOR & _MASK
        key ^= key >> 29
    return key - (1 << 64) if key >> 63 else key


def _hash_contexts(tokens: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Returns the hashes of all contexts of `length` tokens that something follows, in order."""
    count = len(tokens) - length
    key = np.zeros(count, dtype=np.uint64)
    for place in range(length):
        key = (key ^ (tokens[place : place + count].astype(np.uint64) + np.uint64(1))) * np.uint64(_FACTOR)
        key ^= key >> np.uint64(29)
    return key.view(np.int64)


@dataclass(frozen=True)
class _Order:
    """Contexts of one length: their hashes in ascending order, where the successors of each begin, and these, with
    the probability of each, the most probable first. `totals` counts how often a context was seen."""

    keys: NDArray[np.int64]
    starts: NDArray[np.int64]
    tokens: NDArray[np.int32]
    probs: NDArray[np.float16]
    totals: NDArray[np.int32]

    def find(self, key: int) -> int | None:
        place = int(np.searchsorted(self.keys, key))
        return place if place < len(self.keys) and self.keys[place] == key else None


class NgramTable:
    """N-grams of a corpus, up to `order` tokens with the one that follows. `tokenizer` is the fingerprint of the
    tokenizer that the corpus was cut with."""

    def __init__(self, orders: Mapping[int, _Order], tokenizer: str) -> None:
        self._orders, self.tokenizer = dict(orders), tokenizer
        self._looked_up: dict[tuple[int, ...], tuple[int, int, Successors]] = {}

    @property
    def order(self) -> int:
        """The length of the longest n-grams."""
        return 1 + max(self._orders)

    def __len__(self) -> int:
        return sum(len(order.keys) for order in self._orders.values())

    def entry(self, context: Sequence[int]) -> tuple[int, Successors]:
        """Returns how often something followed the whole of `context`, and what, with its probability."""
        order = self._orders.get(len(context))
        place = order.find(hash_context(context)) if order is not None else None
        if order is None or place is None:
            return 0, []
        span = slice(int(order.starts[place]), int(order.starts[place + 1]))
        found = zip(order.tokens[span].tolist(), order.probs[span].tolist(), strict=True)
        return int(order.totals[place]), list(found)

    def backoff(self, context: Sequence[int]) -> tuple[int, int, Successors]:
        """Returns the length of the longest end of `context` that something followed, 0 where there is none, and what
        `entry` says of it. The last few thousand answers are remembered: the next round asks for most contexts again.
        """
        longest = self.order - 1
        key = tuple(context[-longest:])
        known = self._looked_up.get(key)
        if known is None:
            if len(self._looked_up) >= REMEMBERED:
                self._looked_up.clear()
            ends = ((length, *self.entry(key[-length:])) for length in range(len(key), 0, -1))
            known = self._looked_up[key] = next((end for end in ends if end[2]), (0, 0, []))
        return known

    def successors(self, context: Sequence[int]) -> Successors:
        """Returns what followed the whole of `context`, with its probability; [] where that was never seen."""
        return self.entry(context)[1]

    def seen(self, context: Sequence[int]) -> int:
        """Returns how often something followed `context`."""
        return self.entry(context)[0]

    @classmethod
    def build(
        cls,
        documents: Iterable[Sequence[int]],
        tokenizer: str,
        *,
        lengths: Sequence[int] = (2,),
        successors: int | None = 12,
    ) -> NgramTable:
        """Counts the n-grams of documents, none across two of them, for contexts of these lengths; keeps the most
        frequent `successors` of each (None: all), with their share of all that followed it.
        """
        lists = [np.asarray(document, dtype=np.int64) for document in documents]
        orders = {}
        for length in lengths:
            some = [tokens for tokens in lists if len(tokens) > length]
            keys = np.concatenate([_hash_contexts(tokens, length) for tokens in some] or [np.empty(0, np.int64)])
            following = np.concatenate([tokens[length:] for tokens in some] or [np.empty(0, np.int64)])
            orders[length] = _counted(keys, following, successors)
        return cls(orders, tokenizer)

    def save(self, path: Path) -> None:
        """Writes the table to one file, whole or not at all."""
        held = {
            f"{name}.{length}": torch.from_numpy(getattr(order, name))
            for length, order in self._orders.items()
            for name in ("keys", "starts", "tokens", "probs", "totals")
        }
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(held, part, {"about": json.dumps({"kind": "ngrams", "tokenizer": self.tokenizer})})
            part.replace(path)
        except (OSError, SafetensorError) as error:
            raise FailureError(f"can't write {path}: {getattr(error, 'strerror', None) or error}") from error

    @classmethod
    def load(cls, path: Path, tokenizer: Tokenizer | None = None) -> NgramTable:
        """Opens a table. Raises `UsageError` for a file that is none, or one that another tokenizer made."""
        try:
            with safe_open(path, framework="pt") as file:
                about: dict[str, Any] = json.loads((file.metadata() or {}).get("about", "{}"))
                held = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 - no dict
        except FileNotFoundError:
            raise UsageError(
                f"there is no table {path}; `outlay train table --out {path} FILES...` makes one"
            ) from None
        except (SafetensorError, OSError, ValueError) as error:
            raise UsageError(f"{path} is not a table of n-grams: {' '.join(str(error).split())}") from None
        if about.get("kind") != "ngrams":
            raise UsageError(f"{path} is not a table of n-grams; `outlay train table` makes one")
        if tokenizer is not None and about["tokenizer"] != tokenizer_fingerprint(tokenizer):
            raise UsageError(
                f"{path} was made with another tokenizer; make one for this model with `outlay train table --model M`"
            )
        lengths = sorted({int(name.partition(".")[2]) for name in held})
        fields = ("keys", "starts", "tokens", "probs", "totals")
        orders = {length: _Order(**{name: held[f"{name}.{length}"] for name in fields}) for length in lengths}
        return cls(orders, about["tokenizer"])


def _counted(keys: NDArray[np.int64], following: NDArray[np.int64], most: int | None) -> _Order:
    """Sorts pairs of a context and what followed it, and counts them."""
    order = np.lexsort((following, keys))
    keys, following = keys[order], following[order]
    if not len(keys):
        empty = np.empty(0, np.int64)
        return _Order(
            empty, np.zeros(1, np.int64), empty.astype(np.int32), empty.astype(np.float16), empty.astype(np.int32)
        )
    new = np.flatnonzero(np.r_[True, (np.diff(keys) != 0) | (np.diff(following) != 0)])
    counts = np.diff(np.r_[new, len(keys)])
    pair_keys, pair_tokens = keys[new], following[new]
    contexts, context_of = np.unique(pair_keys, return_inverse=True)
    totals = np.bincount(context_of, weights=counts).astype(np.int64)
    by_weight = np.lexsort((pair_tokens, -counts, context_of))
    context_of, pair_tokens, counts = context_of[by_weight], pair_tokens[by_weight], counts[by_weight]
    firsts = np.searchsorted(context_of, np.arange(len(contexts)))
    rank = np.arange(len(context_of)) - firsts[context_of]
    kept = rank < most if most is not None else np.ones(len(rank), dtype=bool)
    context_of, pair_tokens, counts = context_of[kept], pair_tokens[kept], counts[kept]
    starts = np.searchsorted(context_of, np.arange(len(contexts) + 1))
    probs = (counts / totals[context_of]).astype(np.float16)
    return _Order(contexts, starts.astype(np.int64), pair_tokens.astype(np.int32), probs, totals.astype(np.int32))


class TextNgrams:
    """Where the n-grams of one growing text, of `longest` tokens and fewer, were seen last."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # the place behind the last time that these tokens stood here
        self._entered = 0

    def extend(self, tokens: Iterable[int]) -> None:
        """Adds tokens to the text. An n-gram is entered when another token follows it, so that none finds itself."""
        self.tokens.extend(tokens)
        for end in range(max(self._entered, 1), len(self.tokens)):
            for length in range(1, min(self.longest, end) + 1):
                self._ends[tuple(self.tokens[end - length : end])] = end
        self._entered = max(len(self.tokens), 1)

    def match(self, shortest: int = 1) -> tuple[int, int] | None:
        """Returns the place behind the last earlier occurrence of the text's longest possible end, and its length."""
        for length in range(min(self.longest, len(self.tokens)), shortest - 1, -1):
            end = self._ends.get(tuple(self.tokens[-length:]))
            if end is not None:
                return end, length
        return None

    def after(self, place: int, count: int) -> Iterator[int]:
        """Yields up to `count` tokens from `place` on; where they reach the text's end, they go on from its copy."""
        period = len(self.tokens) - place
        for offset in range(count):
            yield self.tokens[place + offset % period]
