"""ByteSampler: the distribution of the next byte under a language model of tokens (Hayase et al. 2025).

A text's bytes so far are the beginning of many token sequences. Each of them is the canonical tokenization of a shorter
beginning, and one token that goes past the end. So the next byte has the probability of all tokens that go on with it
after each of these beginnings. They share prefixes, so a byte costs a pass over one position, and the sum is over few.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outlay.constrain.vocabulary import Vocabulary, vocabulary_of
from outlay.decode.steer.anchored.canonical import Canonical, Path, Pieces, bytes_after, ending_of
from outlay.engine.forward import Forward
from outlay.engine.request import Request
from outlay.engine.seat import Seat
from outlay.errors import FailureError
from outlay.models.tokenizer import Tokenizer
from outlay.tree.token_tree import Node, Tree

STOP = 256  # the symbol that ends a text
BLOCK = 64  # bytes of a prompt that are read in one pass: their logits are held together

Floats = npt.NDArray[np.float64]


class TokensByBytes:
    """The tokens of a vocabulary in the order of their bytes, so that those with a common beginning lie together."""

    def __init__(self, vocabulary: Vocabulary, special: frozenset[int]) -> None:
        tokens = sorted((data, token) for token, data in enumerate(vocabulary.bytes) if data)
        self._pieces = [data for data, _ in tokens]
        self.order = np.array([token for _, token in tokens])
        self.special = np.array(sorted(token for token in special if token < vocabulary.size), dtype=np.int64)
        longest = max(map(len, self._pieces))
        padded = b"".join(data.ljust(longest, b"\0") for data in self._pieces)
        self._bytes = np.frombuffer(padded, dtype=np.uint8).reshape(-1, longest)

    def extending(self, beginning: bytes) -> tuple[int, int]:
        """Returns where in `order` the tokens begin and end whose bytes begin with these and go on."""
        begin = bisect_right(self._pieces, beginning)
        above = beginning.rstrip(b"\xff")
        if not above:
            return begin, len(self._pieces)
        return begin, bisect_left(self._pieces, above[:-1] + bytes([above[-1] + 1]))

    def next_bytes(self, begin: int, end: int, at: int) -> npt.NDArray[np.uint8]:
        """Returns the byte at index `at` of the tokens from `begin` to `end`."""
        return self._bytes[begin:end, at]


_SORTED: WeakKeyDictionary[Tokenizer, dict[int, TokensByBytes]] = WeakKeyDictionary()


def tokens_by_bytes(tokenizer: Tokenizer, size: int) -> TokensByBytes:
    """Returns the sorted tokens of a model with `size` logits, made once."""
    sizes = _SORTED.setdefault(tokenizer, {})
    if size not in sizes:
        special = frozenset({*tokenizer.special_token_ids, *tokenizer.eos_token_ids})
        sizes[size] = TokensByBytes(vocabulary_of(tokenizer, size), special)
    return sizes[size]


@dataclass(eq=False)
class Beginning:
    """A tokenization of the first `end` bytes, after which the model was asked."""

    path: Path
    end: int
    node: Node
    logprob: float
    """Of its tokens."""
    logprobs: Floats
    """Of the token after it, [vocab]."""


class ByteSampler:
    """The bytes of a text at one model.

    `feed` and `take` read bytes, in turn: the first asks for a pass, the second is given its logits. `settled` are
    tokens of which it is certain that the text begins with them, as far as nobody took them out.

    Args:
        seat: The model's.
        tree: A tree of the seat that holds the tokens before the text.
        may_end: Whether the text may end, with the symbol `STOP`.

    Raises:
        UsageError: For a model whose tokenizer is no BPE over bytes.
    """

    def __init__(self, seat: Seat, tree: Tree, *, may_end: bool = True) -> None:
        model = seat.model
        self._seat, self._tree, self._may_end = seat, tree, may_end
        self._tokens = tokens_by_bytes(model.tokenizer, model.decoder.config.vocab_size)
        self._canonical: Canonical = seat.shared_state("canonical tokenizations", lambda: Canonical(model))
        self._data = b""  # from the last word on before which all is settled
        self._live: list[Beginning] = []
        self._asked: list[tuple[Path, int, Node]] = []
        self._splits: list[list[Pieces]] = []  # of each end of `_data` that was fed last
        self._given = 0  # how many tokens of the live paths were settled
        self.settled: list[int] = []

    def feed(self, data: bytes) -> Forward:
        """Reads bytes; the first call reads none, and asks what a text begins with."""
        if not self._live:
            assert self._tree.tip is not None, "a text comes after a token at least"
            self._asked = [((), 0, self._tree.tip)]
            return self._seat.forward([self._tree.tip])
        nodes = {each.path: each.node for each in self._live}
        begin, self._data = len(self._data), self._data + data
        ends = range(begin + 1, len(self._data) + 1)
        self._splits = [self._canonical.splits(self._data[:end]) for end in ends]
        for end, splits in zip(ends, self._splits, strict=True):
            for path in dict.fromkeys(self._canonical.path(pieces, end) for pieces in splits):
                if path[:-1] not in nodes:
                    raise FailureError(
                        f"the tokenizer of {self._seat.model.name} cuts {self._data[:end].decode(errors='replace')!r} "
                        "by what follows later, so its bytes have no exact distribution; give models of one tokenizer"
                    )
                (nodes[path],) = self._tree.extend([nodes[path[:-1]]], [path[-1]])
                self._asked.append((path, end, nodes[path]))
        return self._seat.forward([node for _, _, node in self._asked])

    def take(self, logits: Tensor) -> list[float]:
        """Takes in the logits that `feed` asked for, [rows, vocab]; returns the log-probability of each byte read."""
        asked, self._asked = self._asked, []
        rows = logits.double().log_softmax(-1).cpu().numpy()
        if not self._live:
            self._live = [Beginning(*asked[0], 0.0, rows[0])]
            return []
        known, whole, scores = {each.path: each for each in self._live}, self._data, list[float]()
        for end, splits in enumerate(self._splits, len(whole) - len(self._splits) + 1):
            self._data = whole[: end - 1]
            scores.append(float(self.logprobs()[whole[end - 1]]))
            self._data = whole[:end]
            self._live = [each for each in self._live if self._goes_on(each, splits)]
            for (path, at, node), row in zip(asked, rows, strict=True):
                if at == end:
                    above = known[path[:-1]]
                    logprob = above.logprob + float(above.logprobs[path[-1]])
                    known[path] = Beginning(path, end, node, logprob, row)
                    self._live.append(known[path])
        self._tree.prune([each.node for each in self._live])
        self._settle()
        return scores

    def read(self, data: bytes) -> Generator[Request, Any, list[float]]:
        """Reads bytes of any number; returns the log-probability of each after those before it."""
        if not self._live:
            self.take((yield self.feed(b"")))
        scores = list[float]()
        for begin in range(0, len(data), BLOCK):
            scores += self.take((yield self.feed(data[begin : begin + BLOCK])))
        return scores

    def logprobs(self) -> Tensor:
        """Returns the log-probabilities of the next byte, and of the text's end as the last, float64 [257].

        Bytes that make the text no UTF-8 are left out, as is an end inside a character.

        Raises:
            FailureError: Where nothing is left.
        """
        mass, top = np.zeros(STOP + 1), max(each.logprob for each in self._live)
        for each in self._live:
            begin, end = self._tokens.extending(self._data[each.end :])
            probs = np.exp(each.logprobs[self._tokens.order[begin:end]] + (each.logprob - top))
            following = self._tokens.next_bytes(begin, end, len(self._data) - each.end)
            mass[:STOP] += np.bincount(following, probs, STOP)
            if each.end == len(self._data):
                mass[STOP] += np.exp(each.logprobs[self._tokens.special] + (each.logprob - top)).sum()
        rest = ending_of(self._data).rest
        mass[:STOP] *= bytes_after(rest)
        if rest or not self._may_end:
            mass[STOP] = 0.0
        if not mass.any():
            raise FailureError(f"{self._seat.model.name} gives no byte any probability after {self._data[-40:]!r}")
        with np.errstate(divide="ignore"):
            return torch.from_numpy(np.log(mass / mass.sum()))

    @property
    def rest(self) -> Sequence[int]:
        """The tokens of the whole text that are not settled, where it ends here."""
        return self._canonical.path(self._canonical.splits(self._data)[0], len(self._data))[self._given :]

    def _goes_on(self, each: Beginning, splits: Sequence[Pieces]) -> bool:
        """Tells whether a token after a beginning goes past the end, and some text that begins so is split there."""
        begin, end = self._tokens.extending(self._data[each.end :])
        return begin < end and any(each.path == self._canonical.path(pieces, each.end) for pieces in splits)

    def _settle(self) -> None:
        """Hands out the tokens that all live beginnings share, and forgets the words before the last of them."""
        paths = zip(*(each.path for each in self._live), strict=False)
        common = [tokens[0] for tokens in takewhile(lambda tokens: len({*tokens}) == 1, paths)]
        self.settled += common[self._given :]
        self._given = len(common)
        if not self._canonical.splits_words:
            return
        count, at = len(common), sum(map(len, map(self._seat.model.tokenizer.bytes_of, common)))
        while count and not (self._data[at : at + 1] == b" " and self._data[at - 1 : at].isalnum()):
            count -= 1
            at -= len(self._seat.model.tokenizer.bytes_of(common[count]))
        if count:
            self._data, self._given = self._data[at:], self._given - count
            self._live = [replace(each, path=each.path[count:], end=each.end - at) for each in self._live]
