"""Best of n: draw n texts and return the one with the highest mean log-probability of its tokens.

All samples share the prompt's keys and values and every pass. The score of a text is its mean log-probability under
the model's raw logits, the end token included, so that it does not favour short texts. The samples are exact; choosing
among them is not, by design.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from outlay.engine.method import About, Method, Work
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.tree.token_tree import Node, Tree


@dataclass
class _Text:
    """One sample: its own tree, forked below the prompt, and the sum of its tokens' log-probabilities."""

    tree: Tree
    stream: int
    logprob: float = 0.0
    length: int = 0
    ended: bool = False

    @property
    def score(self) -> float:
        return self.logprob / self.length if self.length else float("-inf")

    @property
    def tip(self) -> Node:
        assert self.tree.tip is not None
        return self.tree.tip


@dataclass(frozen=True)
class BestOf(Method):
    """Draws `n` texts and returns the one whose tokens have the highest mean log-probability."""

    n: int = 4
    """Texts that are drawn together."""

    about: ClassVar[About] = About(
        name="best_of",
        summary="n samples, the one with the highest mean log-probability kept",
        paper="",
        family="search",
        spends="n positions a pass",
        saves="passes, against n requests one after the other",
        exact=False,
    )

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"best_of needs n of 1 or more, not {self.n}")

    def check(self, submission: Submission) -> None:
        if submission.greedy and self.n > 1:
            raise UsageError("best_of draws different texts only at a temperature above 0; try temperature=0.8")

    def decode(self, run: TreeRun) -> Work:
        prompt_end = run.tip
        logits = yield run.target.forward([prompt_end])
        texts = [_Text(run.target.fork(run.tree), stream) for stream in range(self.n)]
        rows = dict.fromkeys(range(self.n), logits[0])
        while rows:
            for stream, row in rows.items():
                self._grow(run, texts[stream], row)
            run.offer(max(texts, key=lambda text: text.score).tip)
            open_texts = [text for text in texts if not text.ended]
            if not open_texts:
                break
            logits = yield run.target.forward([text.tip for text in open_texts])
            rows = {text.stream: row for text, row in zip(open_texts, logits, strict=True)}
        run.count(texts=self.n)
        run.accept(max(texts, key=lambda text: text.score).tip)

    @staticmethod
    def _grow(run: TreeRun, text: _Text, row: Tensor) -> None:
        token = run.sampler.pick(row, text.tip, stream=text.stream)
        text.logprob += float(row[token] - row.logsumexp(-1))
        text.length += 1
        text.tree.append([token])
        text.ended = token in run.eos_token_ids or text.length >= run.max_tokens
