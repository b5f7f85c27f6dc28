"""Budget guidance: a thinking span is steered to end within a budget of tokens, instead of being cut off there.

A small network reads the frozen model's hidden states and predicts, for every possible next token, a Gamma distribution
of the logarithm of the thinking tokens that would remain. Where a paragraph of the thinking begins, each token's
probability is multiplied by the probability that the thinking then ends within the budget, and the product is
normalised: classifier guidance applied to length (Li et al. 2025, arXiv 2506.13752). By Bayes' rule it samples from
p(text | thinking within the budget) where the predictor is right and every token is guided; with a fitted predictor, at
paragraphs alone, it is approximate. A hard stop, which the authors don't have, forces the closing tag at the budget.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from outlay.decode.steer.budget_guidance.predictor import (
    FittedPredictor,
    about_predictor,
    layer_outputs,
    log_within,
    most_likely_length,
    open_predictor,
)
from outlay.decode.steer.budget_guidance.span import ThinkingSpan, closing_tokens
from outlay.engine.method import About, Method, Work
from outlay.engine.request import Request
from outlay.engine.sampling import draw_tokens
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.kernels import Truncation
from outlay.models.reasoning import Tags, tags_of

UNTRUNCATED = Truncation(1.0)


@dataclass(frozen=True)
class BudgetGuidance(Method):
    """Guides the length of thinking by predicted remaining tokens (Li et al. 2025, section 3)."""

    tokens: int | None = None
    """Thinking tokens, those of the closing tag included; 0 guides nothing. By default the budget's `thinking_tokens`.
    Paper: 500 to 5000."""

    predictor: str = "default"
    """The file of the length predictor (`outlay train length`); "default": the one that was trained for the model."""

    cadence: Literal["newline", "every", "never"] | int = "newline"
    """Which thinking tokens are guided: those that begin a paragraph, every one, every k-th, or none, which is budget
    forcing."""

    hard_stop: bool = True
    """Whether the closing tag is forced where the budget leaves room for nothing else. Paper: false."""

    min_rate: float | None = None
    """Tokens with a lower predicted rate are taken as untrained and excluded; by default the fitted value.
    Paper: 10."""

    min_shape: float = 1.0
    """The same for the shape, which must be above this."""

    min_mode: float = 0.9
    """The same for the most likely remaining length, in tokens; -1 excludes none."""

    opening: str | None = None
    """What opens the thinking; by default the predictor's or the model's tag, and with `closing` alone nothing: it
    begins with the text."""

    closing: str | None = None
    """What closes the thinking; by default the predictor's or the model's tag."""

    about: ClassVar[About] = About(
        name="budget_guidance",
        summary="thinking steered to end within a budget of tokens",
        paper="https://arxiv.org/abs/2506.13752",
        family="steering",
        spends="a small network's pass at each paragraph of the thinking",
        saves="thinking tokens, and answers that a cut through a thought would cost",
        needs=("length predictor",),
        exact=False,
        texts=("opening", "closing"),
        counts={"thinking_tokens": "tokens", "predictor_calls": "calls"},
    )

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 0:
            raise UsageError(f"tokens of budget_guidance is a number of thinking tokens, 0 or more, not {self.tokens}")
        if self.cadence not in ("newline", "every", "never") and not (
            isinstance(self.cadence, int) and self.cadence > 0
        ):
            raise UsageError(
                f"cadence of budget_guidance is newline, every, never, or a number from 1 on, not {self.cadence}"
            )
        if self.opening is not None and self.closing is None:
            raise UsageError("budget_guidance with an opening needs the closing too, such as closing=</think>")
        if self.closing == "":
            raise UsageError("closing of budget_guidance is some text that ends the thinking, such as </think>")
        for name, least in (("min_rate", 0), ("min_shape", 0), ("min_mode", -1)):
            if getattr(self, name) is not None and not getattr(self, name) >= least:
                raise UsageError(f"{name} of budget_guidance must be {least} or more, not {getattr(self, name)}")

    def check(self, submission: Submission) -> None:
        model, limit = submission.model, self._limit(submission)
        if not limit:
            return
        tags = self._tags(submission)
        if not self.hard_stop and submission.options.budget.caps.get("thinking_tokens") is not None:
            raise UsageError("a budget of thinking_tokens is kept by the hard stop; leave hard_stop=false out")
        if self.hard_stop and limit < (least := closing_tokens(model.tokenizer, tags)):
            raise UsageError(f"budget_guidance needs tokens of {least} or more here, which {tags.closing} alone takes")

    def decode(self, run: TreeRun) -> Work:
        limit = self._limit(run.submission)
        while not limit:
            run.commit((yield from run.next_token(run.tip)))

        fitted, tags = None, self._tags(run.submission)
        if self.cadence != "never":
            fitted = run.shared_state(("length", self.predictor), lambda: open_predictor(self.predictor, run.model))
        reserve = closing_tokens(run.model.tokenizer, tags)
        span = ThinkingSpan(run.model.tokenizer, tags, run.text_prompt)
        while True:
            left = limit - span.tokens
            if span.inside and self.hard_stop and left <= reserve:
                yield from force_closing(run, span)
            elif fitted is not None and span.is_due(self.cadence) and run.left("predictor_calls") >= 1:
                commit(run, span, (yield from self._guided_token(run, fitted, max(left, 1))))
            else:
                commit(run, span, (yield from run.next_token(run.tip)))

    def _guided_token(self, run: TreeRun, fitted: FittedPredictor, left: int) -> Generator[Request, Any, int]:
        """Draws the next token from p(token) Pr(L <= left | token), normalised."""
        logits, states = yield run.target.forward_with_states([run.tip])
        with torch.inference_mode():
            shape, rate = fitted.net(layer_outputs(run.model.decoder, states))
        run.count(predictor_calls=1, predictor_flops=fitted.net.flops(states.shape[1]))
        run.facts.setdefault("difficulty", float(most_likely_length(shape, rate)[0, logits[0].argmax()]))
        min_rate = fitted.min_rate if self.min_rate is None else self.min_rate
        trained = is_trained(shape[0], rate[0], min_rate, self.min_shape, self.min_mode)
        if not bool(trained.any()):
            run.count(fallbacks=1)
        return pick(run, logits[0], log_factors(shape[0], rate[0], left, trained, logits[0]))

    def _limit(self, submission: Submission) -> int:
        """Returns the thinking tokens that are asked for. Raises `UsageError` where none are."""
        cap = submission.options.budget.caps.get("thinking_tokens")
        asked = [limit for limit in (self.tokens, cap) if limit is not None]
        if not asked:
            raise UsageError(
                "budget_guidance needs a budget of thinking tokens: budget_guidance:tokens=500, or the budget "
                "thinking_tokens=500"
            )
        return int(min(asked))

    def _tags(self, submission: Submission) -> Tags:
        """Returns what stands around the thinking. Raises `UsageError` where that isn't known."""
        model = submission.model
        if self.closing is not None:
            return Tags(self.opening or "", self.closing)
        if self.cadence != "never":
            return Tags(*about_predictor(self.predictor, model)[1]["tags"])
        tags = tags_of(model.tokenizer)
        if tags is None:
            raise UsageError(f"{model.name} has no tags around its thinking; say what ends it, such as closing=Answer:")
        return tags


def commit(run: TreeRun, span: ThinkingSpan, token: int) -> None:
    """Commits a token, counted where it is one of the thinking."""
    run.count(thinking_tokens=int(span.inside))
    span.push(token)
    run.commit(token)


def force_closing(run: TreeRun, span: ThinkingSpan) -> Work:
    """Commits what the closing tag still lacks."""
    run.count(forced_stops=1)
    for token in span.rest_of_closing():
        yield run.target.topk([run.tip], 1)  # computes the position; what comes next is known
        commit(run, span, token)


def is_trained(shape: Tensor, rate: Tensor, min_rate: float, min_shape: float, min_mode: float) -> Tensor:
    """Returns the tokens whose heads were trained, bool [vocab]: untrained ones keep a shape and a rate near log 2."""
    return (rate >= min_rate) & (shape > min_shape) & (most_likely_length(shape, rate) >= min_mode)


def log_factors(shape: Tensor, rate: Tensor, left: float, trained: Tensor, logits: Tensor) -> Tensor:
    """Returns what guidance adds to the logits, float32 [vocab]: log Pr(L <= left | token).

    Untrained tokens are excluded, with -inf. Where all are untrained, only the most probable token is left.

    Args:
        shape: Of the Gamma distribution of each token, [vocab].
        rate: Likewise.
        left: Thinking tokens that are left, at least 1.
        trained: Bool [vocab].
        logits: Raw logits [vocab].
    """
    factors = torch.full_like(logits, -torch.inf)
    if not bool(trained.any()):
        factors[logits.argmax()] = 0.0
        return factors
    factors[trained] = log_within(shape[trained], rate[trained], left).to(factors.dtype)
    return factors


def pick(run: TreeRun, logits: Tensor, factors: Tensor) -> int:
    """Returns a token of softmax(logits + factors), the most probable one at temperature 0.

    The factors follow bias and penalties. As the authors have it, temperature and truncation don't apply to guided
    tokens.
    """
    edits, tip = run.sampler.edits, run.tip
    edits.append(lambda raw, node, then: raw + factors)
    try:
        if run.sampler.greedy:
            return run.sampler.pick(logits, tip)
        draw = run.sampler.token_draw(tip)._replace(truncation=UNTRUNCATED)
        return draw_tokens(run.sampler.penalized(logits, tip)[None], [draw])[0]
    finally:
        edits.pop()
