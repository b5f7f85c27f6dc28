"""The engine's side of a run: its text, stop conditions, limits, clock and trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from outlay.budget import Account, Ledger
from outlay.engine.receipt import LogitChain
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
    """A text beside others: one that a method suggests, with its score, higher for better, or one of `n` samples.

    `leaf` is the number of the prompt that it answers, from 0 on, where the prompts were a tree.
    """

    text: str
    tokens: list[int]
    score: float | None
    finish_reason: str | None = None
    leaf: int | None = None


class TextChunk(NamedTuple):
    """Text that one step of a run added, with the tokens that it is made of."""

    text: str
    """The text; empty where the run ends with tokens that are not shown, such as the end token."""
    origin: str
    """What proposed it; empty for the model's own choice."""
    tokens: tuple[int, ...] = ()
    """The tokens since the last chunk: its last character may be made of several."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """The log-probability of each of `tokens`, if they were asked for."""


class Timing(NamedTuple):
    """When a run was submitted, began and gave its first token."""

    queued: float
    """The time of its submission, in seconds since 1970."""
    began: float | None = None
    """Seconds from its submission until it was worked on; None where it never was."""
    first_token: float | None = None
    """Seconds from its submission until its first token; None where there is none."""


class Session:
    """The text of one submission as it grows, and everything that can end it.

    `deliver` is called with each chunk of text. `finish_reason` is None as long as the text goes on; `cap` is the entry
    of the budget that ended it, if one did. `ends_with` is the reason to end the run at the method's next request, with
    its cap, None where there is none. `timing` is when it was submitted, began and gave its first token, and
    `cached_tokens` counts the prompt's tokens that were in the cache when it began. `restarts` is how often the run was
    put back and began anew, which writes the same text: what was delivered isn't delivered again. `holds` says that
    text is delivered at the end alone, since the run may go back: `closed` are tokens that led nowhere, by the text
    before them, and `goes_back` tells the engine to begin the method anew behind what is left of the text.
    """

    def __init__(
        self, submission: Submission, deliver: Callable[[TextChunk], None], trace: Trace | None = None
    ) -> None:
        self.submission, self.trace = submission, trace
        self.account = Account(submission.options.budget, Ledger())
        self.tokens: list[int] = []
        self.origins: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.alternatives: list[Alternative] = []
        self.chain = LogitChain() if submission.options.receipt else None
        self.kv_dtype = ""  # how the target model's keys and values are held
        self.facts: dict[str, Any] = {}
        self.finish_reason: str | None = None
        self.cap = ""
        self.restarts = 0
        self.closed: dict[tuple[int, ...], set[int]] = {}
        self.holds = self.goes_back = False
        self._back_to = 0  # how many tokens are left when it goes back
        self._held: list[tuple[str, str, int]] = []  # text to be delivered, its origin, and the tokens up to its end
        self._before: Session | None = None  # the session that got furthest before the run was put back
        self._chunks = self._repeated = 0  # chunks of text so far, and how many of them were delivered before
        self.cached_tokens = 0
        self.ends_with: tuple[str, str] | None = None
        self.max_tokens, self.eos_token_ids = submission.max_tokens, submission.eos_token_ids
        self._deliver = deliver
        self._text = TextStream(submission.model.tokenizer, submission.options.stop)
        self._closed = False
        self._delivered = 0  # tokens whose text was
        self._started = time.perf_counter()
        self.timing = Timing(time.time())

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
        if self.timing.first_token is None:
            self.timing = self.timing._replace(first_token=self._seconds())
        self.tokens.append(token)
        self.origins.append(origin)
        self.ledger.tokens_out += 1
        wanted = self.submission.options.logprobs
        if wanted is not None:
            assert logits is not None, "raw logits come with every token whose log-probability is wanted"
            self.logprobs.append(token_logprob(logits, token, wanted))
        if self.chain is not None:
            assert logits is not None, "raw logits come with every token of a run with a receipt"
            self.chain.add(token, logits)
        if token in self.eos_token_ids:
            self.end("stop")
            return
        if text := self._text.push(token):
            self._send(text, origin)
        if self._text.stopped:
            self.end("stop")
        elif self.account.left("tokens_out") <= 0:
            self.end("budget", "tokens_out")
        elif len(self.tokens) >= self.max_tokens:
            self.end("length")

    def go_back(self, tokens: Sequence[int]) -> None:
        """Has the method begin anew behind `tokens`, the beginning of the text, from its next request on."""
        self.goes_back, self._back_to = True, len(tokens)
        self.end("backtrack")

    def begin_again(self) -> None:
        """Takes back the tokens that led to a dead end."""
        self.goes_back, self.finish_reason = False, None
        tokens, origins = self.tokens[: self._back_to], self.origins[: self._back_to]
        del self.tokens[self._back_to :], self.origins[self._back_to :], self.logprobs[self._back_to :]
        self.ledger.tokens_out = len(tokens)
        self._text, self._held = TextStream(self.submission.model.tokenizer, self.submission.options.stop), []
        self._chunks = 0
        for place, (token, origin) in enumerate(zip(tokens, origins, strict=True)):
            if text := self._text.push(token):
                self._held.append((text, origin, place + 1))

    def suggest(self, tokens: Sequence[int], score: float) -> None:
        """Adds a text to the result's `alternatives`."""
        text = self.submission.model.tokenizer.decode([token for token in tokens if token not in self.eos_token_ids])
        self.alternatives.append(Alternative(text, list(tokens), score))

    def end(self, reason: str, cap: str = "") -> None:
        """Says why the text ends here, for "budget" with its cap; a reason that stands already stays."""
        if self.finish_reason is None:
            self.finish_reason, self.cap = reason, cap

    def cut_off(self, cap: str) -> None:
        """Says that the budget's `cap` ends the text here, whatever reason its last token gave."""
        self.finish_reason, self.cap = "budget", cap

    def end_soon(self, reason: str, cap: str = "") -> None:
        """Has the run end at the method's next request; what it commits until then is kept."""
        self.ends_with = self.ends_with or (reason, cap)

    def begin(self) -> None:
        """The run is worked on from now on."""
        if self.timing.began is None:
            self.timing = self.timing._replace(began=self._seconds())

    def again(self) -> Session:
        """Returns the session with which the run begins anew, from its submission on."""
        twin = Session(self.submission, self._deliver, self.trace)
        twin._started, twin.timing, twin.cached_tokens = self._started, self.timing, self.cached_tokens
        twin.restarts = self.restarts + 1
        twin.closed = self.closed
        twin.ledger.extras["restarts"] = twin.restarts
        before = self._before
        twin._before = before if before is not None and len(before.tokens) > len(self.tokens) else self
        twin._repeated = max(self._chunks, self._repeated)
        return twin

    def overdue(self) -> bool:
        """Tells whether the time is over."""
        return self.seconds_left() <= 0

    def seconds_left(self) -> float:
        """Brings the ledger's seconds up to date; returns what the budget leaves of them, infinity without a cap."""
        self.ledger.seconds = self._seconds()
        return self.account.left("seconds")

    def close(self, reason: str, cap: str = "") -> None:
        """Ends the text, once, and delivers what was held back. A reason that stands already stays."""
        if self._closed:
            return
        self._closed = True
        self.end(reason, cap)
        if self._before is not None and len(self._before.tokens) > len(self.tokens):
            self._take_back(self._before)
        text = self._text.flush()
        if text or self._held or self._delivered < len(self.tokens):
            self._send(text)
        if self.trace is not None and self.finish_reason is not None:
            self.trace.finished(self.finish_reason, self.tokens)
        self.ledger.seconds = self._seconds()

    def _send(self, text: str, origin: str = "") -> None:
        if self.holds and not self._closed:
            self._held.append((text, origin, len(self.tokens)))
            return
        held, self._held = self._held, []
        for earlier in held:
            self._deliver_up_to(*earlier)
        self._deliver_up_to(text, origin, len(self.tokens))

    def _deliver_up_to(self, text: str, origin: str, end: int) -> None:
        begin, self._delivered = self._delivered, end
        self._chunks += 1
        if self._chunks > self._repeated:
            self._deliver(TextChunk(text, origin, tuple(self.tokens[begin:end]), tuple(self.logprobs[begin:end])))

    def _take_back(self, before: Session) -> None:
        """Ends with what an earlier session had written, which this one has not reached again."""
        self.tokens, self.origins, self.logprobs = before.tokens, before.origins, before.logprobs
        self.chain = before.chain
        self._text, self._delivered, self._chunks = before._text, before._delivered, self._repeated
        self.ledger.tokens_out = len(self.tokens)

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def token_logprob(logits: Tensor, token: int, top: int) -> TokenLogprob:
    """Returns the log-probability of a token under raw logits [vocab], and the `top` most probable ones."""
    logprobs = logits.float().log_softmax(-1)
    best = torch.topk(logprobs, top) if top else None
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
    return TokenLogprob(token, float(logprobs[token]), tuple(pairs))
