"""Transfer Q*: decoding tilted by the reward that an aligned model would end with (Chakraborty et al. 2024).

Each candidate token is rolled out to its end by a baseline model that is already aligned, a scorer rates the finished
texts, and the token's probability is tilted by the mean: pi(z|s) ~ prior(z|s) exp(Q(s, z) / alpha). The right Q is that
of the optimal policy, which nobody has; the aligned model's stands in for it (direct transfer), reweighted where it was
aligned to another reward (indirect transfer). arXiv 2405.20495, Algorithm 1.

The tilt of the k candidates is exact given Q. Q is an estimate: from a few roll-outs, cut at `rollout_len` tokens. A
candidate that loses at temperature 0 whatever its reward, from 0 to 1, is not rolled out, which changes no token; nor
does it that a greedy roll-out is gone on with after its first token was taken.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from outlay.decode.steer.transfer_q.rollouts import Branch, Choices, RollOuts
from outlay.engine.method import About, Method, Work
from outlay.engine.request import Request
from outlay.engine.sampling import distribution, invert
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.models.images import placed_in
from outlay.models.load import Model
from outlay.rewards.own import OwnProbability
from outlay.rewards.scorer import RunScorer, Scorer
from outlay.search.resampling import effective_sample_size
from outlay.search.steps import unescaped
from outlay.speculation.ngrams import tokenizer_fingerprint


@dataclass(frozen=True)
class TransferQ(Method):
    """Transfer Q*: tokens tilted by the reward of the texts that an aligned model ends them with."""

    alpha: float = 1.0
    """Divides values, which are from 0 to 1: the lower, the more they decide; inf: the prior alone does."""
    topk: int = 10
    """Candidates a token: the most probable tokens of the prior."""
    rollouts: int = 1
    """Roll-outs of each candidate."""
    rollout_len: int = 20
    """Tokens of a roll-out at most; the authors take 5 for indirect transfer."""
    rollout: Literal["auto", "greedy", "sample"] = "auto"
    """How roll-outs are written: by the most probable tokens, or drawn at temperature 1. auto: drawn if several."""
    prior: Literal["baseline", "target"] = "baseline"
    """Whose probabilities are tilted."""
    baseline: str | Model | None = None
    """The aligned model that rolls out; none: the target itself, as where it is the aligned one."""
    baseline_reward: str | Scorer | None = None
    """The scorer to which the baseline was aligned, where it is another one: indirect transfer."""
    implicit: bool = False
    """Indirect transfer without that scorer: by the reward of DPO, beta log(p_baseline / p_target)."""
    beta: float = 2.0
    """The strength of the alignment, which divides rewards in the weights of indirect transfer."""
    normalise: bool = True
    """Whether the weights of a candidate's roll-outs are divided by their sum. The authors' code doesn't."""
    value: Literal["mean", "soft"] = "mean"
    """Whether a candidate's value is the mean reward, or beta log mean exp(reward / beta)."""
    block: int = 1
    """Tokens of the best roll-out that are taken at a time."""
    sure: float = 1.0
    """The probability above which the most probable token is taken without roll-outs."""
    bound: bool = True
    """Whether, at temperature 0, candidates that lose with any reward are left out."""
    reuse: bool = True
    """Whether a greedy roll-out is gone on with after its first token was taken."""
    step: str = "\\n\\n"
    """What ends a step, for scorers that rate steps."""

    about: ClassVar[About] = About(
        name="transfer_q",
        summary="tokens tilted by the reward that an aligned model's roll-outs end with",
        paper="https://arxiv.org/abs/2405.20495",
        family="steering",
        spends="`rollout_len` passes a token, each over `topk` x `rollouts` positions, and as many scores",
        saves="the fine-tuning to a reward",
        needs=("scorer",),
        takes=("constraint",),
        exact=False,
        models=("baseline",),
        scorers=("baseline_reward",),
        texts=("step",),
        counts={"rollouts": "rollouts"},
    )

    def __post_init__(self) -> None:
        for name in ("topk", "rollouts", "rollout_len", "block"):
            if getattr(self, name) < 1:
                raise UsageError(f"transfer_q needs {name} of 1 or more, not {getattr(self, name)}")
        if not self.alpha > 0:
            raise UsageError(f"alpha of transfer_q is above 0, inf for the prior alone, not {self.alpha:g}")
        if not 0 < self.beta < math.inf:
            raise UsageError(f"beta of transfer_q is a number above 0, not {self.beta:g}")
        if not 0 < self.sure <= 1:
            raise UsageError(f"sure of transfer_q is a probability, 1 for never, not {self.sure:g}")
        if self.rollout not in ("auto", "greedy", "sample") or self.prior not in ("baseline", "target"):
            raise UsageError("rollout of transfer_q is auto, greedy or sample, and prior is baseline or target")
        if self.value not in ("mean", "soft"):
            raise UsageError(f"value of transfer_q is mean or soft, not {self.value!r}")
        if self.rollout == "greedy" and self.rollouts > 1:
            raise UsageError("greedy roll-outs of a token are all the same; take rollouts=1, or rollout=sample")
        if self.implicit and (self.baseline is None or self.baseline_reward is not None):
            raise UsageError("implicit=true weighs a baseline= against the target, and takes no baseline_reward=")
        if self.indirect and self.normalise and self.rollouts == 1:
            raise UsageError(
                "the weight of a single roll-out cancels, which is direct transfer; take rollouts=4, or normalise=false"
            )
        if self.value == "soft" and self.indirect:
            raise UsageError("value=soft is of direct transfer; leave out baseline_reward= and implicit=")

    @property
    def indirect(self) -> bool:
        """Whether the baseline was aligned to another reward."""
        return self.implicit or self.baseline_reward is not None

    @property
    def greedy_rollouts(self) -> bool:
        """Whether roll-outs take the most probable tokens."""
        return self.rollout == "greedy" or (self.rollout == "auto" and self.rollouts == 1)

    def check(self, submission: Submission) -> None:
        if any(isinstance(each, OwnProbability) for each in (submission.scorer, *submission.scorers.values())):
            raise UsageError("transfer_q asks what a text is worth, not how probable it is; give a scorer but self")
        baseline, model = submission.models.get("baseline"), submission.model
        if baseline is None:
            return
        if (
            tokenizer_fingerprint(baseline.tokenizer) != tokenizer_fingerprint(model.tokenizer)
            or baseline.decoder.config.vocab_size != model.decoder.config.vocab_size
            or baseline.decoder.reads_hidden_states
        ):
            raise UsageError(f"{baseline.name} can't roll out texts of {model.name}: it needs the same vocabulary")
        if placed_in(submission.prompt):
            raise UsageError("a baseline reads text alone; leave baseline= out for prompts with images")
        if self.block > 1 and (submission.options.logprobs is not None or submission.options.receipt):
            raise UsageError("a target beside a baseline reads blocks whole; take block=1 for log-probabilities")
        needed = len(submission.prompt) + submission.max_tokens
        if needed > baseline.decoder.config.max_positions:
            raise UsageError(
                f"{baseline.name} reads at most {baseline.decoder.config.max_positions} tokens, but prompt and text "
                f"may have {needed}; give a lower max_tokens"
            )

    def decode(self, run: TreeRun) -> Work:
        values, rollouts, found = Values(run, self), self._rollouts(run), Findings()
        while run.finish_reason is None:
            prior, target_logprobs = yield from rollouts.choices(self.prior)
            candidates = self._candidates(prior, greedy=run.sampler.greedy)
            if not candidates:
                run.commit(prior.tokens[0])  # nothing is allowed here, which ends the text, or begins it anew
                continue
            branches = rollouts.begin([prior.tokens[place] for place in candidates])
            q = torch.zeros(len(candidates))
            best = [0] * len(candidates)
            if len(candidates) > 1:
                yield from rollouts.grow([each for of_candidate in branches for each in of_candidate])
                q, best = yield from values.of(branches, rollouts, found)
                for branch, value in zip(branches, q.tolist(), strict=True):
                    run.mark(branch[0].texts[0], score=value)
            probs = distribution(prior.logits[candidates] + q / self.alpha, run.options.sampling)
            place = invert(probs, run.random.uniform(run.tip.position, 0))
            found.kl += kl(probs, target_logprobs[candidates])
            run.facts.update(found.facts())
            rollouts.commit(branches[place][best[place]], self.block)

    def _rollouts(self, run: TreeRun) -> RollOuts:
        seat = run.target
        if self.baseline is not None:
            seat = run.seat("baseline", [*run.text_prompt, *run.tokens])
        reuse = self.reuse and not self.implicit  # which asks the target for all of a roll-out
        return RollOuts(
            run, seat, topk=self.topk, length=self.rollout_len, each=self.rollouts, greedy=self.greedy_rollouts,
            reuse=reuse,
        )  # fmt: skip

    def _candidates(self, prior: Choices, *, greedy: bool) -> list[int]:
        """Returns the places of the candidates that are worth roll-outs; a single one is taken without."""
        allowed = int((prior.logits > -torch.inf).sum())
        if allowed and float(prior.logprobs[0].exp()) > self.sure:
            return [0]
        if greedy and self.bound and (self.normalise or not self.indirect):
            return contenders(prior.logits[:allowed], 1 / self.alpha)
        return list(range(allowed))


@dataclass
class Findings:
    """What a run finds out: in `facts` of its result."""

    kl: float = 0.0
    """The sum over choices of KL(what the token was drawn from || the target), in nats."""
    rolled: int = 0
    """Roll-outs."""
    finished: int = 0
    """Roll-outs that came to an end of the text."""
    least: float = 1.0
    most: float = 0.0
    """The range of rewards."""
    effective: list[float] = field(default_factory=list)
    """Of indirect transfer, the effective sample sizes of candidates' roll-outs."""

    def facts(self) -> dict[str, Any]:
        """Returns them by name."""
        found: dict[str, Any] = {"kl": self.kl}
        if self.rolled:
            found |= {"finished": self.finished / self.rolled, "rewards": (self.least, self.most)}
        if self.effective:
            found["ess"] = sum(self.effective) / len(self.effective)
        return found


class Values:
    """Values of candidates from rewards of their roll-outs.

    Args:
        run: The run.
        options: The method.
    """

    def __init__(self, run: TreeRun, options: TransferQ) -> None:
        self._run, self._options = run, options
        mark, given = unescaped(options.step), run.submission
        self._scorer: RunScorer = given.scorer.begin(run, mark)
        other = given.scorers.get("baseline_reward")
        self._baseline_reward: RunScorer | None = None if other is None else other.begin(run, mark)

    def of(
        self, branches: Sequence[Sequence[Branch]], rollouts: RollOuts, found: Findings
    ) -> Generator[Request | list[Request], Any, tuple[Tensor, list[int]]]:
        """Rates the roll-outs of n candidates, m each.

        Returns:
            The candidates' values, float32 [n], and the place of the best roll-out of each.
        """
        flat, options = [each for of_candidate in branches for each in of_candidate], self._options
        ends = [branch.texts[-1] for branch in flat]
        rewards = torch.tensor((yield from self._scorer.rewards(ends)), dtype=torch.float64).view(len(branches), -1)
        log_weights = torch.zeros_like(rewards)
        if self._baseline_reward is not None:
            theirs = torch.tensor((yield from self._baseline_reward.rewards(ends)), dtype=torch.float64)
            log_weights = (rewards - theirs.view_as(rewards)) / options.beta
        elif options.implicit:
            ratios = torch.tensor((yield from rollouts.log_ratios(flat)), dtype=torch.float64)
            log_weights = rewards / options.beta + ratios.view_as(rewards)
        self._run.count(rounds=1, rollouts=len(flat))
        found.rolled += len(flat)
        found.finished += sum(branch.ended for branch in flat)
        found.least, found.most = min(found.least, float(rewards.min())), max(found.most, float(rewards.max()))
        if options.indirect:
            found.effective += [effective_sample_size(row) for row in log_weights.softmax(-1)]
        if options.value == "soft":
            q = soft_values(rewards, log_weights, options.beta)
        else:
            q = mean_values(rewards, log_weights) if options.normalise else raw_values(rewards, log_weights)
        return q.float(), rewards.argmax(-1).tolist()


def contenders(logits: Tensor, reach: float) -> list[int]:
    """Returns the candidates that can have the highest logit after each is raised by 0 to `reach`.

    Args:
        logits: Float32 [k], the highest first.
        reach: By how much a logit can rise.
    """
    return [place for place, logit in enumerate(logits.tolist()) if logit + reach >= float(logits[0])]


def mean_values(rewards: Tensor, log_weights: Tensor) -> Tensor:
    """Returns the self-normalised mean of each candidate's rewards, [n]: E[w r] / E[w] (section 3.2).

    Args:
        rewards: [n, m], of the roll-outs of each candidate.
        log_weights: [n, m], 0 for direct transfer.
    """
    return (log_weights.softmax(-1) * rewards).sum(-1)


def raw_values(rewards: Tensor, log_weights: Tensor) -> Tensor:
    """Returns the mean of w r, [n], as the authors' code has it: the arguments are those of `mean_values`."""
    return (log_weights.exp() * rewards).mean(-1)


def soft_values(rewards: Tensor, log_weights: Tensor, beta: float) -> Tensor:
    """Returns beta log E[exp(r / beta)], [n], whose tilt with alpha = beta is rho_r: arguments as for `mean_values`."""
    return beta * (log_weights.log_softmax(-1) + rewards / beta).logsumexp(-1)


def kl(probs: Tensor, logprobs: Tensor) -> float:
    """Returns KL(p || q) in nats, of probabilities [k] under log-probabilities [k] of the same tokens."""
    p = probs.double()
    return float((torch.where(p > 0, p.log(), 0.0) * p - p * logprobs.double()).sum())
