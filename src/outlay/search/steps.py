"""Texts that are grown step by step: many of them together, in one pass of the target a token."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from outlay.engine.method import Method
from outlay.engine.request import Request
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.models.tokenizer import Tokenizer
from outlay.rewards.scorer import RunScorer
from outlay.tree.token_tree import Node, Tree

COUNTS = {"drawn": "tokens"}
"""What searches count: the tokens of all their texts, those that are dropped included."""
Grown = Generator[Request | list[Request], Any, None]


@dataclass(eq=False)
class Leaf:
    """A beginning of a text: a tree of its own, which shares the keys and values of all that it begins like.

    `stream` is its stream of random numbers, `steps` how many steps it has, the one that grows included. `step_begins`
    and `step_tokens` say where the current step begins in `data`, the text's bytes, and how many tokens it has.
    """

    tree: Tree
    stream: int
    above: Leaf | None = None
    steps: int = 0
    tokens: int = 0
    logprob: float = 0.0
    data: bytes = b""
    step_begins: int = 0
    step_tokens: int = 0
    ended: bool = False
    branched: bool = False
    logits: Tensor | None = field(default=None, repr=False)

    @property
    def tip(self) -> Node:
        """The last token's node."""
        assert self.tree.tip is not None, "a leaf's tree holds the prompt"
        return self.tree.tip

    @property
    def step(self) -> bytes:
        """The bytes of the last step."""
        return self.data[self.step_begins :]

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of its tokens under the raw logits, where they were kept."""
        return self.logprob / self.tokens if self.tokens else float("-inf")

    def release(self) -> None:
        """Gives back what no other leaf holds. The leaf can't be grown or branched any more."""
        self.tree.release()
        self.logits = None


class Steps:
    """Grows the texts of a run.

    Args:
        run: The run.
        mark: The text that ends a step, looked for in the decoded bytes; "" for steps that only end otherwise.
        step_tokens: The most tokens of a step.
        max_steps: The most steps of a text.
        scorer: What rates them, if anything does.
        logprobs: Whether log-probabilities are kept, for which all logits are needed.
        keep_logits: Whether the logits after a leaf are kept where it branches, so that it can branch again without
            computing its last token again.
    """

    def __init__(
        self,
        run: TreeRun,
        *,
        mark: str = "",
        step_tokens: int | None = None,
        max_steps: int | None = None,
        scorer: RunScorer | None = None,
        logprobs: bool = False,
        keep_logits: bool = False,
    ) -> None:
        self.run, self.scorer = run, scorer
        self._mark, self._step_tokens, self._max_steps = mark.encode(), step_tokens, max_steps
        self._logprobs = logprobs or (scorer is not None and scorer.reads_logprobs)
        self._keep_logits = keep_logits
        self._streams = 0
        self._stops = [stop.encode() for stop in run.options.stop]
        written = b"".join(map(run.model.tokenizer.bytes_of, run.tokens))
        self.root = Leaf(run.tree, 0, tokens=len(run.tokens), data=written)

    def branch(self, leaf: Leaf, count: int) -> list[Leaf]:
        """Returns `count` leaves that begin like this one and go on by random numbers of their own.

        The first goes on with the leaf's own stream, unless the leaf has branched before: one branch each time writes
        what sampling writes.
        """
        twins = []
        for _ in range(count):
            stream = leaf.stream
            if leaf.branched:
                self._streams += 1
                stream = self._streams
            leaf.branched = True
            tree = self.run.target.fork(leaf.tree)
            twins.append(
                Leaf(
                    tree, stream, leaf, leaf.steps, leaf.tokens, leaf.logprob, leaf.data, len(leaf.data), 0, leaf.ended
                )
            )
        return twins

    def grow(self, leaves: Sequence[Leaf]) -> Grown:
        """Grows each leaf by one step, all together, one pass a token. Leaves that have ended stay as they are."""
        growing = [leaf for leaf in leaves if not leaf.ended]
        for leaf in growing:
            leaf.steps, leaf.step_begins, leaf.step_tokens = leaf.steps + 1, len(leaf.data), 0
        while growing:
            yield from self.advance(growing)
            growing = [leaf for leaf in growing if not leaf.ended and not self._step_ends(leaf)]

    def advance(self, leaves: Sequence[Leaf]) -> Grown:
        """Grows each leaf by one token, in one pass."""
        self.run.count(drawn=len(leaves))
        sampler = self.run.sampler
        known = [leaf.above.logits if leaf.above is not None and leaf.step_tokens == 0 else None for leaf in leaves]
        begins = self._keep_logits and any(leaf.step_tokens == 0 for leaf in leaves)
        if sampler.raw and not sampler.greedy and not self._logprobs and not begins:
            draws = [sampler.token_draw(leaf.tip, leaf.stream) for leaf in leaves]
            tokens = yield self.run.target.draw([leaf.tip for leaf in leaves], draws)
            for leaf, token in zip(leaves, tokens, strict=True):
                self.add(leaf, int(token))
            return
        asked = [leaf for leaf, row in zip(leaves, known, strict=True) if row is None]
        rows = iter((yield self.run.target.forward([leaf.tip for leaf in asked])) if asked else ())
        for leaf, row in zip(leaves, known, strict=True):
            logits = next(rows) if row is None else row
            if self._keep_logits and leaf.step_tokens == 0 and leaf.above is not None and leaf.above.logits is None:
                leaf.above.logits = logits.clone()
            token = sampler.pick(logits, leaf.tip, leaf.stream)
            self.add(leaf, token, float(logits[token] - logits.logsumexp(-1)) if self._logprobs else 0.0)

    def add(self, leaf: Leaf, token: int, logprob: float = 0.0) -> None:
        """Adds a token to a leaf, and ends it where its text ends. `logprob` is for scorers that read it."""
        leaf.tree.append([token])
        leaf.tokens, leaf.step_tokens, leaf.logprob = leaf.tokens + 1, leaf.step_tokens + 1, leaf.logprob + logprob
        if self.scorer is not None and self.scorer.reads_logprobs:
            self.scorer.wrote(leaf.tip, logprob)
        before = len(leaf.data)
        leaf.data += self.run.model.tokenizer.bytes_of(token)
        leaf.ended = (
            token in self.run.eos_token_ids
            or leaf.tokens >= self.run.max_tokens
            or any(leaf.data.find(stop, max(0, before - len(stop) + 1)) >= 0 for stop in self._stops)
        )

    def _step_ends(self, leaf: Leaf) -> bool:
        """Tells whether the step is at its end; ends the text with it where it has all its steps."""
        written = leaf.step.lstrip()
        marked = bool(self._mark) and self._mark in written
        if not marked and (self._step_tokens is None or leaf.step_tokens < self._step_tokens):
            return False
        leaf.ended = self._max_steps is not None and leaf.steps >= self._max_steps
        return True


@dataclass(frozen=True, kw_only=True)
class StepSearch(Method):
    """Base of searches whose texts grow by steps that a scorer rates. A subclass says how many it rates at a time."""

    step: str = "\\n\\n"
    """What ends a step; empty: only `step_tokens` do."""
    step_tokens: int = 1024
    """Tokens of a step at most."""
    max_steps: int = 40
    """Steps of a text at most."""

    @property
    def at_a_time(self) -> int:
        """The texts that are drawn and rated together."""
        raise NotImplementedError

    def check(self, submission: Submission) -> None:
        name, least = self.about.name, self.at_a_time
        check_steps(submission, name, unescaped(self.step), drawn=least > 1)
        cap = submission.options.budget.caps.get("scores", least)
        if cap < least:
            raise UsageError(
                f"{name} scores {least} texts at a time; a budget of {cap:g} scores is below one expansion"
            )

    def refuse_below_one(self, *options: str) -> None:
        """Raises `UsageError` where one of these options, or of those that all step searches have, is less than 1."""
        for option in (*options, "step_tokens", "max_steps"):
            if getattr(self, option) < 1:
                raise UsageError(f"{self.about.name} needs {option} of 1 or more, not {getattr(self, option)}")

    def begin(self, run: TreeRun, *, keep_logits: bool = False) -> tuple[Steps, RunScorer]:
        """Returns what grows the texts of a run, and what rates them."""
        mark = unescaped(self.step)
        scorer: RunScorer = run.submission.scorer.begin(run, mark)
        return Steps(
            run, mark=mark, step_tokens=self.step_tokens, max_steps=self.max_steps, scorer=scorer,
            keep_logits=keep_logits,
        ), scorer  # fmt: skip


def check_steps(submission: Submission, method: str, step: str, *, drawn: bool) -> None:
    """Raises `UsageError` where the steps of a search can't be written, or its texts would all be the same.

    Args:
        submission: What was submitted.
        method: The method's name.
        step: The text that ends a step.
        drawn: Whether several texts are drawn.
    """
    if drawn and submission.greedy:
        raise UsageError(f"{method} draws different texts only at a temperature above 0; try temperature=0.8")
    if step and not writable(submission.model.tokenizer, step):
        raise UsageError(
            f"{submission.model.name} has no tokens for the step mark {step!r}; give another, or step= and step_tokens="
        )


def writable(tokenizer: Tokenizer, text: str) -> bool:
    """Tells whether a model can write a text with its tokens."""
    return text.strip() in tokenizer.decode(tokenizer.encode(text)) and not tokenizer.unreadable(text)


def unescaped(text: str) -> str:
    """Returns a text with its \\\\n and \\\\t written out, as they are typed on the command line."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
