"""Anchored decoding: a risky model writes as freely as a budget of KL divergence from a safe model allows.

Each symbol is drawn from the distribution nearest to the risky model's among those whose KL divergence from the safe
model's is within what the text may still spend; what easy steps leave is banked, and a prompt that looks memorised
begins with a debt. Along every text the divergences add up to at most K = k T nats, so a text that the safe model gives
the probability p comes with one of at most (K + log 2) / -log p (He, Hayase, Yih, Oh, Zettlemoyer, Koh 2026, "Anchored
Decoding: Provably Reducing Copyright Risk for Any Language Model", arXiv 2602.07120). With models of different tokens
both are asked for bytes (ByteSampler, Hayase et al. 2025): exact for what tokenizers write, and so an approximation
where a model gives probability to other tokens of the same text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from outlay.decode.steer.anchored.budget import KLBudget, Reduce, prefix_debt
from outlay.decode.steer.anchored.canonical import Canonical
from outlay.decode.steer.anchored.fusion import fuse
from outlay.decode.steer.anchored.pairs import BytePair, Pair, TokenPair
from outlay.engine.method import About, Method, Work
from outlay.engine.sampling import Sampling, invert
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.models.images import placed_in, text_of
from outlay.models.load import Model
from outlay.speculation.ngrams import tokenizer_fingerprint


@dataclass(frozen=True)
class Anchored(Method):
    """Anchored decoding: the target is the risky model, whose text stays near a safe model's."""

    safe: str | Model | None = None
    """The safe model, which has read nothing that must not be copied; it must be given."""
    k: float = 0.15
    """Nats of KL divergence that each symbol adds to the budget, a token or, at level byte, a byte; 0: the safe model's
    own texts."""
    debt: bool = True
    """Whether a prompt that the risky model knows better than the safe one takes from the budget."""
    debt_n: int = 5
    """The symbols of the prompt with the largest log-likelihood ratios, of which the debt is the mean."""
    debt_reduce: Reduce = "topn_mean"
    """The mean of all debt_n, or of those above 0 alone (positive_mean)."""
    level: Literal["auto", "token", "byte"] = "auto"
    """What a symbol is; auto: a token where both models have the same, else a byte."""

    about: ClassVar[About] = About(
        name="anchored",
        summary="a risky model's texts within a budget of divergence from a safe model",
        paper="https://arxiv.org/abs/2602.07120",
        family="steering",
        spends="a pass of each model a token; at level byte a pass of each a byte",
        saves="copies of what the safe model never read, by a bound on every text",
        exact=False,
        models=("safe",),
        counts={"kl_nats": "nats"},
    )

    def __post_init__(self) -> None:
        if not 0 <= self.k < math.inf:
            raise UsageError(f"k of anchored is a number of nats, 0 or more, not {self.k}; without a bound take sample")
        if self.debt_n < 1:
            raise UsageError(f"anchored needs debt_n of 1 or more, not {self.debt_n}; debt=false turns the debt off")
        if self.debt_reduce not in get_args(Reduce) or self.level not in ("auto", "token", "byte"):
            raise UsageError(
                f"debt_reduce of anchored is {' or '.join(get_args(Reduce))}, and level is auto, token or byte"
            )

    def check(self, submission: Submission) -> None:
        if self.safe is None:
            raise UsageError("anchored needs a safe model beside the risky one: anchored:safe=MODEL")
        options, model, safe = submission.options, submission.model, submission.models["safe"]
        sampling = options.sampling
        if submission.greedy:
            raise UsageError("anchored bounds what is drawn, not what is most probable; give temperature=1")
        if sampling != Sampling(sampling.temperature):
            raise UsageError(
                "top_k, top_p, min_p, penalties and logit_bias break the bound of anchored; leave them out"
            )
        if model.encoder is not None or safe.encoder is not None or safe.writes_canvas or safe.reward_form is not None:
            raise UsageError(
                f"anchored compares two models that read and write from left to right; {safe.name} can't be the "
                f"safe one of {model.name}"
            )
        if safe.decoder.reads_hidden_states:
            raise UsageError(f"{safe.name} is a draft head, which writes no text alone; give another safe model")
        if self.level == "token" and not _same_tokens(model, safe):
            raise UsageError(f"{model.name} and {safe.name} have different tokens; take anchored:level=byte")
        reads, needs = safe.decoder.config.max_positions, len(text_of(submission.prompt)) + submission.max_tokens - 1
        if not self._by_bytes(submission) and needs > reads:
            raise UsageError(
                f"{safe.name} reads at most {reads} tokens, and prompt and text have up to {needs}; lower max_tokens"
            )
        if self._by_bytes(submission):
            Canonical(model)
            Canonical(safe)
            if options.logprobs is not None or options.receipt:
                raise UsageError("anchored:level=byte draws bytes, not tokens; leave out logprobs and receipt")
            if placed_in(submission.prompt):
                raise UsageError("anchored:level=byte reads text alone; give a safe model of the same tokens")

    def decode(self, run: TreeRun) -> Work:
        pair: Pair = BytePair(run) if self._by_bytes(run.submission) else TokenPair(run)
        ratios = yield from pair.read_prompt(self.debt)
        debt = pair.scale * prefix_debt(ratios, self.debt_n, self.debt_reduce) if self.debt else 0.0
        budget = KLBudget(self.k, pair.steps, debt)
        run.facts.update(level="byte" if pair.scale > 1 else "token", kl_budget=budget.total, prefix_debt=budget.debt)
        thetas = 0.0
        while run.finish_reason is None:
            k = min(budget.allowed, run.left("kl_nats"))
            log_safe, log_risky = yield from pair.logprobs(k > 0)
            fused = fuse(log_safe, log_risky, k)
            symbol = invert(fused.probs, run.random.uniform(run.prompt_end.position + budget.taken, 0))
            budget.spend(fused.kl)
            thetas += fused.theta
            run.count(kl_nats=fused.kl)
            run.facts.update(symbols=budget.taken, mean_theta=thetas / budget.taken)
            yield from pair.write(symbol, theta=fused.theta, allowed=k, kl=fused.kl, spent=budget.spent)

    def _by_bytes(self, submission: Submission) -> bool:
        if self.level == "auto":
            return not _same_tokens(submission.model, submission.models["safe"])
        return self.level == "byte"


def _same_tokens(one: Model, other: Model) -> bool:
    fingerprints = {tokenizer_fingerprint(each.tokenizer) for each in (one, other)}
    return len(fingerprints) == 1 and one.decoder.config.vocab_size == other.decoder.config.vocab_size
