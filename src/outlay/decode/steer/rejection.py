"""Rejection of whole texts: the model writes freely, and what the constraint's check refuses is thrown away.

The first valid text is distributed as p(text | constraint), with no masks and one check a text. It costs
1 / p(constraint) texts on average, so it pays where the model mostly does what it is asked. With `by=logprob` or
`by=score` the best of all valid ones among `draws` is returned.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from outlay.engine.functions import FunctionWorker
from outlay.engine.method import About, Method, Work
from outlay.engine.request import Request
from outlay.engine.sampling import invert
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.search.steps import Leaf, Steps, check_steps, unescaped


@dataclass(frozen=True)
class Rejection(Method):
    """Draws texts until the constraint's check accepts one."""

    draws: int = 64
    """Texts that are drawn at most."""
    together: int = 8
    """Texts that are drawn together, in one pass a token."""
    by: Literal["first", "logprob", "score"] = "first"
    """Whether the first valid text is returned, or of all draws the one with the highest mean log-probability or
    reward."""
    step: str = "\\n\\n"
    """What ends a step, for scorers that rate steps."""

    about: ClassVar[About] = About(
        name="rejection",
        summary="whole texts drawn freely until one satisfies the constraint",
        paper="",
        family="steering",
        spends="1 / p(constraint) texts",
        saves="checks: one a text; and the distortion of masks",
        needs=("constraint",),
        takes=("scorer",),
        exact=False,
        texts=("step",),
    )

    def __post_init__(self) -> None:
        for name in ("draws", "together"):
            if getattr(self, name) < 1:
                raise UsageError(f"rejection needs {name} of 1 or more, not {getattr(self, name)}")

    def check(self, submission: Submission) -> None:
        check_steps(submission, "rejection", "", drawn=True)
        if (self.by == "score") != (submission.scorer is not None):
            raise UsageError("rejection asks a scorer with by=score, and with by=score only")

    def decode(self, run: TreeRun) -> Work:
        assert run.allowed is not None, "rejection needs a constraint"
        rater = run.submission.scorer.begin(run, unescaped(self.step)) if self.by == "score" else None
        steps, check = Steps(run, scorer=rater, logprobs=True), run.allowed.constraint.check
        checker = run.service("texts", lambda wake: FunctionWorker(_asked, counts="checks", role="check"))
        valid, drawn = list[Leaf](), 0
        while drawn < self.draws and not (valid and self.by == "first"):
            leaves = steps.branch(steps.root, min(self.together, self.draws - drawn))
            drawn += len(leaves)
            yield from _written(run, steps, leaves)
            texts = [run.model.tokenizer.decode(run.text_tokens(leaf.tip)) for leaf in leaves]
            answers = yield [checker.call(run, check, text) for text in texts]
            for leaf, accepted in zip(leaves, answers, strict=True):
                if accepted and leaf.tip.token in run.eos_token_ids:
                    valid.append(leaf)
                else:
                    leaf.release()
            run.facts["accepted"], run.facts["drawn"] = len(valid), drawn
        if not valid:
            run.give_up()
            return
        scores = [leaf.mean_logprob for leaf in valid]
        if rater is not None:
            scores = yield from rater.rewards([leaf.tip for leaf in valid])
        order = sorted(range(len(valid)), key=lambda place: -scores[place])
        if self.by != "first":
            run.suggest([(run.text_tokens(valid[place].tip), scores[place]) for place in order])
        run.accept(valid[0 if self.by == "first" else order[0]].tip, checked=True)


def _written(run: TreeRun, steps: Steps, leaves: Sequence[Leaf]) -> Generator[Request | list[Request], Any, None]:
    """Has the model write texts to their ends, whatever the constraint allows."""
    while growing := [leaf for leaf in leaves if not leaf.ended]:
        rows = yield run.target.forward([leaf.tip for leaf in growing])
        for leaf, logits in zip(growing, rows, strict=True):
            probs = run.sampler.unmasked_logprobs(logits, leaf.tip).exp()
            token = invert(probs, run.random.uniform(leaf.tip.position, leaf.stream))
            steps.add(leaf, token, float(logits[token] - logits.logsumexp(-1)))


def _asked(check: Any, text: str) -> bool:
    return bool(check(text))
