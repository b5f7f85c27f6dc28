"""Particle filtering: n texts grow step by step, and after each step those with high rewards get more offspring.

Inference-time scaling by sequential Monte Carlo (Puri et al. 2025, arXiv 2502.01618). A reward r is read as the odds
r / (1 - r) of a potential. With `potential=score` the target is p(x) times the product of all potentials, with
`potential=ratio` it is p(x) times the last one, and `log_normaliser` estimates log E_p of it (the estimate of E_p
itself is unbiased). With several `sweeps` one text is retained from each to the next (particle Gibbs).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from outlay.engine.method import About, Work
from outlay.engine.request import Request
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.rewards.scorer import RunScorer
from outlay.search.resampling import SCHEMES, effective_sample_size
from outlay.search.steps import COUNTS, Leaf, Steps, StepSearch

CLIP = 1e-7  # rewards stay this far from 0 and 1, whose odds have no logarithm
RESAMPLING, SELECTION = 1 << 32, 1 << 33  # streams of random numbers that no text uses


@dataclass
class Population:
    """The particles between two steps: `leaves`, their `rewards`, and `log_weights` float64 [n] carried so far."""

    leaves: list[Leaf]
    rewards: list[float]
    log_weights: Tensor


@dataclass(frozen=True)
class Particles(StepSearch):
    """Sequential Monte Carlo over steps, with a scorer's rewards as potentials."""

    n: int = 16
    """Texts that grow together."""
    potential: Literal["score", "ratio"] = "score"
    """Whether each step is weighed by its own potential, or by its potential over the one before."""
    odds: bool = True
    """Whether the potential is r / (1 - r); otherwise it is r."""
    resample: Literal["multinomial", "systematic", "stratified", "residual"] = "multinomial"
    """How offspring are drawn."""
    ess: float = 1.0
    """Resample where the effective sample size is at most this share of n; 1: after each step."""
    temperature_of_weights: float = 1.0
    """Divides the logarithms of the weights."""
    anneal: float = 1.0
    """Multiplies that temperature after the first step, less after each: 1 + (anneal - 1) / step."""
    entropic: float = 0.0
    """Raise the temperature after a step until the effective sample size is this share of n; 0: don't."""
    absorbing: bool = False
    """Whether finished texts are set aside, and neither copied nor dropped."""
    sweeps: int = 1
    """How often the filter runs; from the second time on, the text that was drawn last is retained."""
    select: Literal["argmax", "sample"] = "argmax"
    """Whether the text with the highest reward is returned, or one drawn by weight."""

    about: ClassVar[About] = About(
        name="particles",
        summary="n texts, copied and dropped after each step by their rewards",
        paper="https://arxiv.org/abs/2502.01618",
        family="search",
        spends="n positions a pass and n scores a step",
        saves="samples, against best of n at the same accuracy",
        needs=("scorer",),
        exact=False,
        counts=COUNTS,
        texts=("step",),
    )

    def __post_init__(self) -> None:
        self.refuse_below_one("n", "sweeps")
        if self.resample not in SCHEMES:
            raise UsageError(f"particles are resampled by {', '.join(SCHEMES)}, not {self.resample!r}")
        if self.potential not in ("score", "ratio") or self.select not in ("argmax", "sample"):
            raise UsageError("potential of particles is score or ratio, and select is argmax or sample")
        if not 0 <= self.ess <= 1 or not 0 <= self.entropic < 1:
            raise UsageError("ess and entropic of particles are shares of n, from 0 to 1")
        if self.temperature_of_weights <= 0 or self.anneal < 1:
            raise UsageError("temperature_of_weights of particles is above 0, and anneal 1 or more")

    @property
    def at_a_time(self) -> int:
        return self.n

    def decode(self, run: TreeRun) -> Work:
        steps, scorer = self.begin(run, keep_logits=self.sweeps > 1)
        retained: list[Leaf] = []
        for sweep in range(self.sweeps):
            particles, log_normaliser = yield from self._filter(run, steps, scorer, retained, sweep)
            run.facts["log_normaliser"] = log_normaliser
            weights = particles.log_weights.softmax(0)
            picked = SCHEMES["multinomial"](weights, 1, run.random.at(sweep, SELECTION))[0]
            retained = _trajectory(particles.leaves[picked])
        why = "drawn by weight"
        if self.select == "argmax":
            picked, why = max(range(self.n), key=particles.rewards.__getitem__), "the highest reward"
        run.mark(particles.leaves[picked].tip, chosen=why)
        run.accept(particles.leaves[picked].tip)

    def _filter(
        self, run: TreeRun, steps: Steps, scorer: RunScorer, retained: Sequence[Leaf], sweep: int
    ) -> Generator[Request | list[Request], Any, tuple[Population, float]]:
        """Runs the filter once. Returns the last population and the logarithm of the estimated normaliser.

        The retained text, if any, is particle 0: it grows as it grew, and is its own ancestor.
        """
        free = steps.branch(steps.root, self.n - bool(retained))
        leaves = [*retained[:1], *free]
        now = Population(leaves, [], torch.zeros(self.n, dtype=torch.float64))
        log_normaliser, number = 0.0, 0
        while True:
            number += 1
            active = [leaf for leaf in now.leaves[bool(retained) :] if not leaf.ended]
            yield from steps.grow(active)
            before, now.rewards = now.rewards, (yield from scorer.rewards([leaf.tip for leaf in now.leaves]))
            for leaf, reward in zip(now.leaves, now.rewards, strict=True):
                run.mark(leaf.tip, score=reward, round=number)
            fresh = [leaf.steps >= number for leaf in now.leaves]
            now.log_weights = now.log_weights + self._increments(now.rewards, before, fresh, number)
            run.offer(now.leaves[max(range(self.n), key=now.rewards.__getitem__)].tip)
            if all(leaf.ended for leaf in now.leaves) and number >= len(retained):
                return now, log_normaliser + _log_mean(now.log_weights)
            if effective_sample_size(now.log_weights.softmax(0)) <= self.ess * self.n + 1e-9:
                if not self.absorbing:
                    log_normaliser += _log_mean(now.log_weights)
                ancestors = self._ancestors(run, now, bool(retained), number + (sweep << 16))
                run.count(resampled=1)
                self._tell(run, now, ancestors)
                now.log_weights = self._after(now, ancestors)
            else:
                ancestors = list(range(self.n))
            now = self._offspring(steps, now, ancestors, retained, number)

    def _increments(
        self, rewards: Sequence[float], before: Sequence[float], fresh: Sequence[bool], number: int
    ) -> Tensor:
        """Returns what a step adds to the logarithms of the weights, float64 [n].

        Args:
            rewards: The rewards after the step.
            before: Those before it, of the same texts; empty at the first step.
            fresh: Whether a text has grown in this step.
            number: The step's number, from 1 on.
        """
        logs = torch.tensor([self.log_potential(reward) for reward in rewards], dtype=torch.float64)
        if self.potential == "ratio":
            if before:
                logs = logs - torch.tensor([self.log_potential(reward) for reward in before], dtype=torch.float64)
            logs = logs * torch.tensor(fresh, dtype=torch.float64)
        elif self.absorbing:
            logs = logs * torch.tensor(fresh, dtype=torch.float64)
        logs = logs / (self.temperature_of_weights * (1 + (self.anneal - 1) / number))
        return tempered(logs, self.entropic * self.n) if self.entropic else logs

    def log_potential(self, reward: float) -> float:
        """Returns the logarithm of a reward's potential."""
        r = min(1 - CLIP, max(CLIP, reward))
        return math.log(r / (1 - r)) if self.odds else math.log(r)

    def _ancestors(self, run: TreeRun, now: Population, retained: bool, number: int) -> list[int]:
        """Draws whose offspring each particle becomes. A retained one, and with `absorbing` finished ones, stay."""
        stays = [(place == 0 and retained) or (self.absorbing and leaf.ended) for place, leaf in enumerate(now.leaves)]
        pool = [place for place, leaf in enumerate(now.leaves) if not (self.absorbing and leaf.ended)]
        going = [place for place in range(self.n) if not stays[place]]
        weights = now.log_weights[pool].softmax(0)
        drawn = SCHEMES[self.resample](weights, len(going), run.random.at(number, RESAMPLING))
        ancestors = list(range(self.n))
        for place, ancestor in zip(going, drawn, strict=True):
            ancestors[place] = pool[ancestor]
        return ancestors

    def _tell(self, run: TreeRun, now: Population, ancestors: Sequence[int]) -> None:
        """Writes into the trace how much each particle weighed and how many offspring it has."""
        for place, (leaf, weight) in enumerate(zip(now.leaves, now.log_weights.softmax(0).tolist(), strict=True)):
            offspring = ancestors.count(place)
            run.mark(leaf.tip, weight=weight, offspring=offspring)
            if not offspring:
                run.mark(leaf.tip, cut="no offspring")

    def _after(self, now: Population, ancestors: Sequence[int]) -> Tensor:
        """Returns the log-weights after resampling: equal, but for finished texts that were set aside."""
        if not self.absorbing:
            return torch.zeros_like(now.log_weights)
        active = torch.tensor([not leaf.ended for leaf in now.leaves])
        shared = _log_mean(now.log_weights[active])
        return torch.where(active, shared, now.log_weights)

    def _offspring(
        self,
        steps: Steps,
        now: Population,
        ancestors: Sequence[int],
        retained: Sequence[Leaf],
        number: int,
    ) -> Population:
        """Returns the particles that go on: a branch of each ancestor that is not finished."""
        leaves = []
        for place, ancestor in enumerate(ancestors):
            leaf = now.leaves[ancestor]
            if place == 0 and retained:
                leaf = retained[min(number, len(retained) - 1)]
            elif not leaf.ended:
                (leaf,) = steps.branch(leaf, 1)
            leaves.append(leaf)
        if self.sweeps == 1:
            for leaf in now.leaves:
                if not leaf.ended:
                    leaf.release()
        return Population(leaves, [now.rewards[ancestor] for ancestor in ancestors], now.log_weights)


def tempered(logs: Tensor, least: float) -> Tensor:
    """Returns log-weights [n] divided by the least temperature, 1 or more, at which `least` particles are effective."""
    if effective_sample_size(logs.softmax(0)) >= least:
        return logs
    low, high = 0.0, 1.0  # of the inverse temperature
    for _ in range(50):
        middle = (low + high) / 2
        enough = effective_sample_size((logs * middle).softmax(0)) >= least
        low, high = (middle, high) if enough else (low, middle)
    return logs * low


def _trajectory(leaf: Leaf) -> list[Leaf]:
    """Returns the leaves of a text, one for each of its steps."""
    path: list[Leaf] = []
    at: Leaf | None = leaf
    while at is not None and at.above is not None:
        path.append(at)
        at = at.above
    return path[::-1]


def _log_mean(logs: Tensor) -> float:
    return float(logs.logsumexp(0)) - math.log(len(logs))
