"""The engine's side of a run: its text, stop conditions, limits, clock and trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from outlay.budget import Account, Ledger
from outlay.engine.submission import Submission
from outlay.engine.text import TextStream
from outlay.engine.trace import Trace


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token under the model's raw logits, and the most probable tokens in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Alternative:
    """A text beside others: one that a method suggests, with its score, higher for better, or one of `n` samples."""

    text: str
    tokens: list[int]
    score: float | None
    finish_reason: str | None = None


class Session:
    """The text of one submission as it grows, and everything that can end it.

    `deliver(text, origin)` is called with each chunk of text. `finish_reason` is None as long as the text goes on.
    `ends_with` is the reason to end the run at the method's next request, None where there is none.
    """

    def __init__(self, submission: Submission, deliver: Callable[[str, str], None], trace: Trace | None = None) -> None:
        self.submission, self.trace = submission, trace
        self.account = Account(submission.options.budget, Ledger())
        self.tokens: list[int] = []
        self.origins: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.alternatives: list[Alternative] = []
        self.facts: dict[str, Any] = {}
        self.finish_reason: str | None = None
        self.ends_with: str | None = None
        self.max_tokens, self.eos_token_ids = submission.max_tokens, submission.eos_token_ids
        self._deliver = deliver
        self._text = TextStream(submission.model.tokenizer, submission.options.stop)
        self._closed = False
        self._started = time.perf_counter()

    @property
    def ledger(self) -> Ledger:
        """What has been spent so far."""
        return self.account.ledger

    @property
    def text(self) -> str:
        """The text committed so far, without the beginning of what may become a stop string."""
        return self._text.text

    def commit(self, token: int, origin: str = "", logits: Tensor | None = None) -> None:
        """Adds a token to the text, streams it, and looks at the stop conditions.

        Args:
            token: The token's id.
            origin: What drafted it; empty for the target model's own choice.
            logits: The raw logits [vocab] that it was chosen from, where log-probabilities are wanted.
        """
        self.tokens.append(token)
        self.origins.append(origin)
        self.ledger.tokens_out += 1
        wanted = self.submission.options.logprobs
        if wanted is not None:
            assert logits is not None, "raw logits come with every token whose log-probability is wanted"
            self.logprobs.append(token_logprob(logits, token, wanted))
        if token in self.eos_token_ids:
            self.finish_reason = "stop"
            return
        self._send(self._text.push(token), origin)
        if self._text.stopped:
            self.finish_reason = "stop"
        elif self.account.left("tokens_out") <= 0:
            self.finish_reason = "budget"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"

    def suggest(self, tokens: Sequence[int], score: float) -> None:
        """Adds a text to the result's `alternatives`."""
        text = self.submission.model.tokenizer.decode([token for token in tokens if token not in self.eos_token_ids])
        self.alternatives.append(Alternative(text, list(tokens), score))

    def end_soon(self, reason: str) -> None:
        """Has the run end at the method's next request; what it commits until then is kept."""
        self.ends_with = self.ends_with or reason

    def tick(self) -> None:
        """Brings the ledger's seconds up to date."""
        self.ledger.seconds = time.perf_counter() - self._started

    def close(self, reason: str) -> None:
        """Ends the text, once, and delivers what was held back. A reason that stands already stays."""
        if self._closed:
            return
        self._closed = True
        self.finish_reason = self.finish_reason or reason
        self._send(self._text.flush())
        if self.trace is not None:
            self.trace.finished(self.finish_reason, self.tokens)
        self.tick()

    def _send(self, text: str, origin: str = "") -> None:
        if text:
            self._deliver(text, origin)


def token_logprob(logits: Tensor, token: int, top: int) -> TokenLogprob:
    """Returns the log-probability of a token under raw logits [vocab], and the `top` most probable ones."""
    logprobs = logits.float().log_softmax(-1)
    best = torch.topk(logprobs, top) if top else None
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
    return TokenLogprob(token, float(logprobs[token]), tuple(pairs))
