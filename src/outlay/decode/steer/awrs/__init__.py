"""AWRS with sequential Monte Carlo: a constraint is asked about few tokens, and texts keep their right probabilities.

Each particle draws its next token by adaptive weighted rejection sampling (Lipkin et al. 2025, arXiv 2504.05410):
tokens come from the model's own distribution without replacement until the constraint accepts one, and the same draws
give an unbiased estimate of the accepted mass, which is the particle's weight. Resampling by these weights makes the
texts converge to p(text | constraint) as particles are added; the estimate exp(log_ml) of the constraint's probability
is unbiased for any number of them. `proper=false` draws what a mask draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from outlay.decode.steer.awrs.grow import Asked, Grower, Particle
from outlay.decode.steer.awrs.samplers import VARIANTS, sampler_for
from outlay.engine.method import About, Method, Work
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.models.load import Model
from outlay.rewards.scorer import RunScorer
from outlay.search.resampling import SCHEMES, effective_sample_size
from outlay.search.steps import Steps, unescaped
from outlay.speculation.ngrams import tokenizer_fingerprint

RESAMPLING, SELECTION = 1 << 32, 1 << 33  # streams of random numbers that no text uses


@dataclass(frozen=True)
class AWRS(Method):
    """Adaptive weighted rejection sampling with sequential Monte Carlo over texts."""

    particles: int = 5
    """Texts that grow together."""
    ess: float = 0.5
    """Resample where the effective sample size is below this share of the particles; 0: never."""
    resample: Literal["multinomial", "systematic", "stratified", "residual"] = "stratified"
    """How offspring are drawn."""
    variant: Literal["auto", "two_loop", "recursive", "geometric"] = "auto"
    """How a token and its weight are drawn; auto: recursive, or geometric where one token is likely."""
    proper: bool = True
    """Whether weights are estimated. Without them the texts are those of masks, for fewer checks."""
    max_accepts: int = 2
    """Accepted draws of the geometric variant, 2 or more: more of them estimate weights better."""
    max_rejects: int = 0
    """Rejected draws after which the geometric variant stops, those made again counted; 0: no limit."""
    top: int = 64
    """The most probable tokens that are looked at first; all logits are asked for only where none of them is drawn."""
    proposal: str | Model | None = None
    """A model of the same tokens that proposes tokens; the weights correct for it."""
    select: Literal["draw", "mode"] = "draw"
    """Whether the answer is drawn by weight, or the text with the highest sum of weights."""
    score_every: int = 16
    """Tokens between two ratings by the scorer, if there is one; ends are always rated."""
    step: str = "\\n\\n"
    """What ends a step, for scorers that rate steps."""

    about: ClassVar[About] = About(
        name="awrs",
        summary="texts under a constraint with their right probabilities, by few checks",
        paper="https://arxiv.org/abs/2504.05410",
        family="steering",
        spends="`particles` positions a pass, and some checks a token",
        saves="checks, against masks made by the same checker; and the distortion of masks",
        needs=("constraint",),
        takes=("scorer",),
        exact=False,
        models=("proposal",),
        texts=("step",),
    )

    def __post_init__(self) -> None:
        for name in ("particles", "top", "score_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"awrs needs {name} of 1 or more, not {getattr(self, name)}")
        if not 0 <= self.ess <= 1:
            raise UsageError(f"ess of awrs is a share of the particles, from 0 to 1, not {self.ess}")
        if self.resample not in SCHEMES:
            raise UsageError(f"awrs resamples by {', '.join(SCHEMES)}, not {self.resample!r}")
        if self.variant not in VARIANTS or self.select not in ("draw", "mode"):
            raise UsageError(f"variant of awrs is {', '.join(VARIANTS)}, and select is draw or mode")
        if self.proper and self.max_accepts < 2:
            raise UsageError("weights need max_accepts of 2 or more; with proper=false there are none")
        if self.proposal is not None and not self.proper:
            raise UsageError("tokens from a proposal need weights that correct for it; leave proper=false out")
        if self.max_rejects < 0 or (self.max_rejects == 1 and self.proper):
            raise UsageError("max_rejects of awrs is 2 or more, or 0 for no limit")

    def check(self, submission: Submission) -> None:
        if submission.greedy:
            raise UsageError("awrs draws its texts; give a temperature above 0, such as temperature=1")
        if submission.options.stop:
            raise UsageError("under awrs the constraint says where a text ends; leave out the stop strings")
        proposal, model = submission.models.get("proposal"), submission.model
        if proposal is not None and (
            tokenizer_fingerprint(proposal.tokenizer) != tokenizer_fingerprint(model.tokenizer)
            or proposal.decoder.config.vocab_size != model.decoder.config.vocab_size
            or proposal.decoder.reads_hidden_states
        ):
            raise UsageError(f"{proposal.name} can't propose tokens for {model.name}: it needs the same vocabulary")

    def decode(self, run: TreeRun) -> Work:
        scorer, mark = run.submission.scorer, unescaped(self.step)
        rater = scorer.begin(run, mark) if scorer is not None else None
        steps = Steps(run, mark=mark, scorer=rater)
        proposer = run.seat("proposal", run.text_prompt, "draft") if self.proposal is not None else None
        rejects = self.max_rejects or math.inf
        grower = Grower(
            run, steps, top=self.top, weighted=self.proper, proposer=proposer,
            sample=lambda p: sampler_for(p, self.variant, self.max_accepts, rejects, self.proper),
        )  # fmt: skip
        particles = grower.begin(self.particles)
        sizes = list[float]()
        while growing := [particle for particle in particles if particle.grows]:
            last = [particle for particle in growing if particle.leaf.tokens + 1 >= run.max_tokens]
            yield from grower.extend([particle for particle in growing if particle not in last])
            yield from grower.force_ends(last)
            if rater is not None:
                yield from self._rate(rater, growing)
            weights = normalised(particles)
            if weights is None:
                break
            sizes.append(effective_sample_size(weights))
            if sizes[-1] < self.ess * self.particles and any(particle.grows for particle in particles):
                ancestors = SCHEMES[self.resample](weights, self.particles, run.random.at(len(sizes), RESAMPLING))
                particles = grower.offspring(particles, ancestors, log_mean(particles))
                run.count(resampled=1)
            alive = [each for each in particles if each.log_weight > -math.inf]
            run.offer(max(alive, key=lambda each: (each.leaf.ended, each.log_weight)).leaf.tip)
        self._answer(run, particles, sizes)

    def _rate(self, scorer: RunScorer, particles: Sequence[Particle]) -> Asked:
        """Multiplies weights by what the scorer's rewards have gained since they were last asked for."""
        due = [
            each
            for each in particles
            if each.log_weight > -math.inf and (each.leaf.ended or each.leaf.tokens - each.rated >= self.score_every)
        ]
        if not due:
            return
        for particle, reward in zip(due, (yield from scorer.rewards([each.leaf.tip for each in due])), strict=True):
            log_score = math.log(reward) if reward > 0 else -math.inf
            particle.log_weight += log_score - particle.log_score
            particle.log_score, particle.rated = log_score, particle.leaf.tokens

    def _answer(self, run: TreeRun, particles: Sequence[Particle], sizes: Sequence[float]) -> None:
        """Returns a text by the particles' weights, with all texts and theirs as alternatives."""
        weights = normalised(particles)
        run.facts["log_ml"], run.facts["ess"] = log_mean(particles), list(sizes)
        if weights is None:
            run.give_up()
            return
        totals: dict[bytes, float] = {}
        for particle, weight in zip(particles, weights.tolist(), strict=True):
            totals[particle.leaf.data] = totals.get(particle.leaf.data, 0.0) + weight
        leaves = {particle.leaf.data: particle.leaf for particle in particles}
        texts = sorted((text for text in totals if totals[text] > 0), key=lambda text: -totals[text])
        run.suggest([(run.text_tokens(leaves[text].tip), totals[text]) for text in texts])
        picked = particles[SCHEMES["multinomial"](weights, 1, run.random.at(0, SELECTION))[0]].leaf
        run.accept((leaves[texts[0]] if self.select == "mode" else picked).tip)


def normalised(particles: Sequence[Particle]) -> Tensor | None:
    """Returns the particles' weights, float64 [n], with a sum of 1; None where all are dead."""
    logs = torch.tensor([particle.log_weight for particle in particles], dtype=torch.float64)
    return logs.softmax(0) if bool((logs > -math.inf).any()) else None


def log_mean(particles: Sequence[Particle]) -> float:
    """Returns the logarithm of the particles' mean weight."""
    logs = torch.tensor([particle.log_weight for particle in particles], dtype=torch.float64)
    return float(logs.logsumexp(0)) - math.log(len(particles))
