"""Best of n: draw n texts and return the best one, by its probability, a scorer, or the votes of all.

All samples share the prompt's keys and values and every pass. The samples are exact; choosing among them is not, by
design. By log-probability, a text's score is its mean log-probability under the model's raw logits, the end token
included, so that it does not favour short texts. Self-consistency (Wang et al. 2023, arXiv 2203.11171) is `by=vote`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from outlay.engine.method import About, Method, Work
from outlay.engine.request import Request
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import FailureError, UsageError
from outlay.search.agreement import agreed
from outlay.search.answers import answer_of, vote
from outlay.search.steps import COUNTS, Leaf, Steps, check_steps, unescaped


@dataclass(frozen=True)
class BestOf(Method):
    """Draws `n` texts and returns the best of them."""

    n: int = 4
    """Texts that are drawn together."""
    by: Literal["logprob", "score", "vote", "weighted"] = "logprob"
    """What is best: the highest mean log-probability of its tokens, the highest reward, the answer that most texts
    give, or the answer whose texts have the highest sum of rewards."""
    step: str = "\\n\\n"
    """What ends a step, for scorers that rate steps."""

    about: ClassVar[About] = About(
        name="best_of",
        summary="n samples, the best kept by log-probability, reward or vote",
        paper="",
        family="search",
        spends="n positions a pass",
        saves="passes, against n requests one after the other",
        takes=("scorer", "constraint", "cache"),
        exact=False,
        counts=COUNTS,
        texts=("step",),
    )

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"best_of needs n of 1 or more, not {self.n}")
        if self.by not in ("logprob", "score", "vote", "weighted"):
            raise UsageError(f"best_of chooses by logprob, score, vote or weighted, not {self.by!r}")

    @property
    def _scores(self) -> bool:
        return self.by in ("score", "weighted")

    def check(self, submission: Submission) -> None:
        check_steps(submission, "best_of", "", drawn=self.n > 1)
        if self._scores and submission.scorer is None:
            raise UsageError(f"best_of:by={self.by} needs a scorer: self, python:FILE or a reward model, with scorer=")
        if not self._scores and submission.scorer is not None:
            raise UsageError("best_of asks a scorer with by=score or by=weighted only; choose one, or leave it out")

    def decode(self, run: TreeRun) -> Work:
        scorer = run.submission.scorer.begin(run, unescaped(self.step)) if self._scores else None
        steps = Steps(run, scorer=scorer, logprobs=True)
        texts = steps.branch(steps.root, self.n)
        while growing := [text for text in texts if not text.ended]:
            yield from steps.advance(growing)
            run.offer(max(texts, key=lambda text: text.mean_logprob).tip)
        run.count(texts=self.n)
        rewards = [1.0] * self.n
        if scorer is not None:
            rewards = yield from scorer.rewards([text.tip for text in texts])
            for text, reward in zip(texts, rewards, strict=True):
                run.mark(text.tip, score=reward)
        ranks = yield from self._ranks(run, texts, rewards)
        best = max(range(self.n), key=ranks.__getitem__)
        run.mark(texts[best].tip, chosen=f"by {self.by}")
        run.accept(texts[best].tip)

    def _ranks(
        self, run: TreeRun, texts: Sequence[Leaf], rewards: Sequence[float]
    ) -> Generator[Request | list[Request], Any, list[tuple[float, ...]]]:
        """Returns what the choice goes by, for each text."""
        means = [text.mean_logprob for text in texts]
        if self.by == "logprob":
            return [(mean,) for mean in means]
        if self.by == "score":
            return [(reward,) for reward in rewards]
        answers = yield from agreed(run, [answer_of(text.data.decode(errors="replace")) for text in texts])
        winner = vote(answers, rewards, [text.logprob for text in texts])
        if winner is None:
            raise FailureError(
                f"best_of:by={self.by} found an answer in none of {self.n} texts: it reads the last \\boxed{{...}} or "
                "number; ask for one in the prompt, or choose by=logprob"
            )
        run.facts["votes"] = {each: answers.count(each) for each in dict.fromkeys(answers) if each is not None}
        second = rewards if self.by == "weighted" else means
        return [(float(answer == winner), rank) for answer, rank in zip(answers, second, strict=True)]
