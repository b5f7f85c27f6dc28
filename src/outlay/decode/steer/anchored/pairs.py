"""The two models side by side, on the same tokens or on the same bytes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol

from torch import Tensor

from outlay.constrain.vocabulary import vocabulary_of
from outlay.decode.steer.anchored.bytes import STOP, ByteSampler
from outlay.decode.steer.anchored.canonical import ending_of
from outlay.engine.request import Request
from outlay.engine.tree_run import TreeRun
from outlay.models.tokenizer import Tokenizer
from outlay.tree.token_tree import NO_TOKEN, Node

Asked = Generator[Request | list[Request], Any, Any]
BYTES_OF_TOKEN = 4  # that one token is taken for, where texts are measured in tokens and written in bytes (the paper)


class Pair(Protocol):
    """The safe and the risky model on one text of symbols: tokens, or bytes and the end."""

    steps: int
    """Symbols of the longest text."""
    scale: int
    """Symbols that a token is taken for."""

    def read_prompt(self, compare: bool) -> Asked:
        """Has both models read the prompt, where they have to before they go on.

        Args:
            compare: Whether to return log p_risky - log p_safe of its symbols, as far as they are known; else nothing.
        """

    def logprobs(self, risky: bool) -> Asked:
        """Returns the log-probabilities of the next symbol, float64 [symbols]: the safe model's, and the risky one's.

        Args:
            risky: Whether the risky model's are needed; where not, None may stand for them.
        """

    def write(self, symbol: int, **marks: float) -> Asked:
        """Writes a symbol. `marks` go into the trace."""


class TokenPair:
    """Two models of the same tokens, one pass of each a token."""

    scale = 1

    def __init__(self, run: TreeRun) -> None:
        self._run, self.steps = run, run.max_tokens
        self._safe = run.seat("safe", run.text_prompt, "side")
        self._keeps_logits = run.options.logprobs is not None or run.options.receipt  # the risky model's, of each token

    def read_prompt(self, compare: bool) -> Asked:
        safe = self._safe.tree.tip
        assert safe is not None, "the prompt is not empty"
        special = self._run.model.tokenizer.special_token_ids
        both = zip((n for n in self._run.tip.path() if n.token != NO_TOKEN), safe.path(), strict=True)
        known = [(a, b) for a, b in list(both)[1:] if a.token not in special]
        if not compare or not known:
            return []
        found = yield [
            self._run.target.logprobs_of([_above(a) for a, _ in known], [[a.token] for a, _ in known]),
            self._safe.logprobs_of([_above(b) for _, b in known], [[b.token] for _, b in known]),
        ]
        ours, theirs = ([each.logprobs[a.token] for each, (a, _) in zip(some, known, strict=True)] for some in found)
        return [risky - safe for risky, safe in zip(ours, theirs, strict=True)]

    def logprobs(self, risky: bool) -> Asked:
        """Asks both models in one tick. Without a budget to spend the risky one isn't asked: it catches up later."""
        tip = self._safe.tree.tip
        assert tip is not None, "the prompt is not empty"
        asked: list[Request] = [self._safe.forward([tip])]
        if risky or self._keeps_logits:
            asked.append(self._run.target.forward([self._run.tip]))
        rows = [_logprobs(logits[0], self._run) for logits in (yield asked)]
        return rows[0], rows[1] if len(rows) > 1 else None

    def write(self, symbol: int, **marks: float) -> Asked:
        self._run.mark(self._run.commit(symbol), **marks)
        self._safe.tree.append([symbol])
        return
        yield


class BytePair:
    """Two models of any tokens on the same bytes. The text is written in the target's tokens, once they are certain."""

    scale = BYTES_OF_TOKEN

    def __init__(self, run: TreeRun) -> None:
        self._run, self.steps = run, run.max_tokens * BYTES_OF_TOKEN
        self._unsettled = 0  # bytes of the prompt whose tokens aren't certain: what follows may belong to them
        model, safe = run.model, run.submission.models["safe"]
        context, self._text = opened(model.tokenizer, run.text_prompt)
        tokens, text = opened(safe.tokenizer, prompt_for(safe.tokenizer, run))
        self._safe_text = text + ending_of(self._text).rest
        seat = run.seat("safe", tokens, "side")
        may_end = bool(run.eos_token_ids)
        self._risky = ByteSampler(run.target, run.target.plant(context), may_end=may_end)
        self._safe = ByteSampler(seat, seat.tree, may_end=may_end)

    def read_prompt(self, compare: bool) -> Asked:
        ours = yield from self._risky.read(self._text)
        theirs = yield from self._safe.read(self._safe_text)
        settled, self._risky.settled = self._risky.settled, []
        self._unsettled = len(self._text) - sum(map(len, map(self._run.model.tokenizer.bytes_of, settled)))
        if not compare:
            return []
        same = _common_end(self._text, self._safe_text)
        pairs = list(zip(ours[len(ours) - same :], theirs[len(theirs) - same :], strict=True))
        return [risky - safe for risky, safe in pairs[1:]]  # before the first byte they may have read other text

    def logprobs(self, risky: bool) -> Asked:
        temperature = self._run.options.sampling.temperature
        return tuple((each.logprobs() / temperature).log_softmax(-1) for each in (self._safe, self._risky))
        yield

    def write(self, symbol: int, **marks: float) -> Asked:
        """Has both models read a byte, and commits the tokens that are certain by now: at the end, all of them."""
        if symbol == STOP:
            self._commit([*self._written(self._risky.rest), min(self._run.eos_token_ids)], marks)
            return
        asked: list[Request] = [each.feed(bytes([symbol])) for each in (self._safe, self._risky)]
        safe, risky = yield asked
        self._safe.take(safe)
        self._risky.take(risky)
        settled, self._risky.settled = self._risky.settled, []
        self._commit(self._written(settled), marks)

    def _written(self, tokens: Sequence[int]) -> list[int]:
        """Returns tokens without the prompt's bytes: one that begins in the prompt gives those that write its end."""
        model, written = self._run.model, list[int]()
        for token in tokens:
            data = model.tokenizer.bytes_of(token)
            left = data[self._unsettled :]
            self._unsettled = max(0, self._unsettled - len(data))
            if left == data:
                written.append(token)
            elif left:
                written += vocabulary_of(model.tokenizer, model.decoder.config.vocab_size).longest_match(left)
        return written

    def _commit(self, tokens: Sequence[int], marks: dict[str, float]) -> None:
        for token in tokens:
            if self._run.finish_reason is None:
                self._run.mark(self._run.commit(token), **marks)


def opened(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[Sequence[int], bytes]:
    """Splits a prompt into tokens that stand as they are, and the text behind them, as bytes.

    The last special token is the end of the first part. A prompt without one keeps its first token, since a model tells
    nothing of what begins a text.
    """
    special = [place for place, token in enumerate(tokens) if token in tokenizer.special_token_ids]
    end = special[-1] + 1 if special else 1
    text, rest = ending_of(b"".join(map(tokenizer.bytes_of, tokens[end:])))
    return tokens[:end], text.encode() + rest


def prompt_for(tokenizer: Tokenizer, run: TreeRun) -> Sequence[int]:
    """Returns the run's prompt in another model's tokens, without a last character that is not finished.

    It is a conversation where both models have a chat template.
    """
    own = run.model.tokenizer
    in_chat = any(token in own.special_token_ids and token != own.bos_token_id for token in run.text_prompt)
    if in_chat and tokenizer.has_chat_template:
        return tokenizer.render_chat([{"role": "user", "content": run.submission.asked}])
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_ids[0]
    return tokenizer.encode_prompt(ending_of(b"".join(map(own.bytes_of, run.text_prompt))).text) or [begin]


def _logprobs(logits: Tensor, run: TreeRun) -> Tensor:
    """Returns log-probabilities, float64 [vocab], at the run's temperature: before the fusion, for both models."""
    return (logits.cpu().double() / run.options.sampling.temperature).log_softmax(-1)


def _common_end(one: bytes, other: bytes) -> int:
    """Returns how many bytes two texts have in common at their ends."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _above(node: Node) -> Node:
    assert node.parent is not None, "the first token is left out"
    return node.parent
