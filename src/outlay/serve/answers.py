"""The answer to a request as it grows: reasoning, text and tool calls, out of the chunks that a run delivers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from outlay.budget import Ledger
from outlay.engine.session import Alternative, TextChunk, TokenLogprob
from outlay.models.tokenizer import Tokenizer
from outlay.serve.thoughts import Thoughts
from outlay.serve.tools import CallParser, Delta


@dataclass
class Call:
    """A call of a function that the model made."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Answer:
    """A text that has ended, with what it cost."""

    text: str
    tokens: list[int]
    finish_reason: str
    """As `outlay.Result` has it: "stop", "length", "budget" or "cancelled"."""
    ledger: Ledger
    method: str
    prompt_tokens: int
    cached_tokens: int
    cap: str = ""
    logprobs: list[TokenLogprob] | None = None
    alternatives: list[Alternative] = field(default_factory=list)
    reasoning_tokens: int = 0


class AnswerReader:
    """Parts the text of a run into reasoning, content and tool calls.

    Args:
        tokenizer: the model's.
        thoughts: tells reasoning from the answer, for a model that thinks.
        calls: tells tool calls from text, where tools were given.
        one_call: whether what comes after the first call is left out.
    """

    def __init__(
        self, tokenizer: Tokenizer, thoughts: Thoughts | None, calls: CallParser | None, one_call: bool = False
    ) -> None:
        self._tokenizer, self._thoughts, self._calls, self._one_call = tokenizer, thoughts, calls, one_call
        parts = [part for part in (thoughts, calls) if part is not None]
        self._marks = {mark for part in parts for mark in part.marks}
        self.content = self.reasoning = ""
        self.calls: list[Call] = []

    @property
    def complete(self) -> bool:
        """Whether nothing that follows would be shown: the first of several calls was all that was asked for."""
        return self._one_call and self._calls is not None and self._calls.calls > 0

    def push(self, chunk: TextChunk) -> list[Delta]:
        """Adds a chunk; returns what it adds to the answer."""
        return self._keep(self._parted(self._with_marks(chunk)))

    def finish(self) -> list[Delta]:
        """Returns what was held back, at the end of the run."""
        rest = self._thoughts.finish() if self._thoughts is not None else []
        deltas = self._called(rest)
        if self._calls is not None:
            deltas += self._calls.finish()
        return self._keep(deltas)

    def _parted(self, text: str) -> list[Delta]:
        if not text:
            return []
        return self._called(self._thoughts.push(text) if self._thoughts is not None else [Delta("content", text)])

    def _called(self, deltas: Iterable[Delta]) -> list[Delta]:
        """Looks for tool calls in content."""
        if self._calls is None:
            return list(deltas)
        found: list[Delta] = []
        for delta in deltas:
            found += self._calls.push(delta.text) if delta.kind == "content" else [delta]
        return found

    def _keep(self, deltas: Iterable[Delta]) -> list[Delta]:
        kept = []
        for delta in deltas:
            if self._one_call and self.calls and (delta.call > 0 or delta.kind not in ("call", "arguments")):
                continue
            kept.append(delta)
            if delta.kind == "content":
                self.content += delta.text
            elif delta.kind == "reasoning":
                self.reasoning += delta.text
            elif delta.kind == "call":
                self.calls.append(Call(delta.call_id, delta.text))
            else:
                self.calls[delta.call].arguments += delta.text
        return kept

    def _with_marks(self, chunk: TextChunk) -> str:
        """Returns a chunk's text with the special tokens spelled out that begin or end calls and thoughts."""
        at, text = 0, ""
        for index, token in enumerate(chunk.tokens):
            if token in self._tokenizer.special_token_ids and self._tokenizer.name_of(token) in self._marks:
                before = max(at, len(self._tokenizer.decode(chunk.tokens[:index])))
                text += chunk.text[at:before] + self._tokenizer.name_of(token)
                at = before
        return text + chunk.text[at:]
