"""How particles grow by a token: all of them together, check by check, one pass of each model a token."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlay.constrain import State
from outlay.decode.steer.awrs.order import LEAST_REST, REST, Numbers, TopTokens
from outlay.decode.steer.awrs.samplers import DEAD, Drawn, Sampling
from outlay.engine.functions import FunctionWorker
from outlay.engine.request import Request
from outlay.engine.seat import Seat
from outlay.engine.tree_run import TreeRun
from outlay.search.steps import Leaf, Steps
from outlay.tree.token_tree import Node, Tree

Asked = Generator[Request | list[Request], Any, None]
TOKENS = 1 << 34  # a stream of random numbers that no text uses


@dataclass(eq=False)
class Particle:
    """A text with its weight.

    `state` is what the constraint knows of it, `proposal` its tree at the model that proposes tokens, if one does.
    `log_score` is the logarithm of its last reward, when it had `rated` tokens.
    """

    leaf: Leaf
    state: State
    log_weight: float = 0.0
    proposal: Tree | None = None
    log_score: float = 0.0
    rated: int = 0

    @property
    def grows(self) -> bool:
        """Whether it is neither finished nor dead."""
        return not self.leaf.ended and self.log_weight > -math.inf


@dataclass(eq=False)
class _Draw:
    """The draw of a particle's next token: what its sampler asks for, and what it has found."""

    particle: Particle
    tokens: TopTokens
    sampling: Sampling
    asks: int | None = None
    found: Drawn = field(default=DEAD)
    logits: Tensor | None = None  # of the target, where a scorer reads them

    def go_on(self, answer: Any) -> None:
        """Sends the sampler an answer; None begins."""
        try:
            self.asks = self.sampling.send(answer)
        except StopIteration as end:
            self.asks, self.found = None, end.value


class Grower:
    """Grows the particles of a run.

    Args:
        run: The run.
        steps: What holds its leaves.
        top: How many of the most probable tokens are looked at before all logits are.
        sample: Makes the sampler of a distribution.
        weighted: Whether weights are kept.
        proposer: The seat of the model that proposes tokens; None for the target itself.
    """

    def __init__(
        self, run: TreeRun, steps: Steps, *, top: int, sample: Any, weighted: bool, proposer: Seat | None
    ) -> None:
        self._run, self._steps, self._sample, self._weighted = run, steps, sample, weighted
        self._proposer, self._seat = proposer, proposer or run.target
        self._eos = sorted(run.eos_token_ids)
        self._top = min(top, run.model.decoder.config.vocab_size)
        self._reads_logits = steps.scorer is not None and steps.scorer.reads_logprobs
        self._checker = run.service("checks", lambda wake: FunctionWorker(_ask, counts="checks", role="check"))
        self._known: dict[tuple[int, int | None], Any] = {}  # answers of this step, by state and token

    def begin(self, count: int) -> list[Particle]:
        """Returns particles of empty texts."""
        assert self._run.allowed is not None, "awrs needs a constraint"
        state = self._run.allowed.state(self._run.tip)
        assert state is not None, "a constraint that no text satisfies is refused before"
        proposer = self._proposer
        return [
            Particle(leaf, state, proposal=proposer.fork(proposer.tree) if proposer is not None else None)
            for leaf in self._steps.branch(self._steps.root, count)
        ]

    def offspring(self, particles: Sequence[Particle], ancestors: Sequence[int], log_weight: float) -> list[Particle]:
        """Returns the offspring of `ancestors`, all of one weight; finished texts are shared, not branched."""
        chosen = []
        for old in (particles[ancestor] for ancestor in ancestors):
            new = replace(old, log_weight=log_weight)
            if not old.leaf.ended:
                (new.leaf,) = self._steps.branch(old.leaf, 1)
                new.proposal = self._proposer.fork(old.proposal) if self._proposer and old.proposal else None
            chosen.append(new)
        for old in particles:
            if not old.leaf.ended:
                old.leaf.release()
                if old.proposal is not None:
                    old.proposal.release()
        return chosen

    def extend(self, particles: Sequence[Particle]) -> Asked:
        """Draws each particle's next token and multiplies its weight. Those that can't go on are dead."""
        if not particles:
            return
        self._known = {}
        draws = yield from self._begin(particles)
        yield from self._settle(draws)
        found = [draw for draw in draws if draw.found.token is not None]
        ratios = yield from self._log_ratios(found)
        for draw in draws:
            if draw.found.token is None:
                draw.particle.log_weight = -math.inf
        for draw, ratio in zip(found, ratios, strict=True):
            self._add(draw.particle, draw.found.token or 0, draw.found.log_weight + ratio, draw.logits)

    def force_ends(self, particles: Sequence[Particle]) -> Asked:
        """Ends particles at the limit of their length: an end token where the constraint ends, else they are dead.

        Weights gain the end's probability: texts are then distributed as those that are not longer.
        """
        self._known = {}
        yield from self._check([(particle.state, None) for particle in particles])
        ending = [particle for particle in particles if self._eos and self._known[id(particle.state), None]]
        for particle in particles:
            if particle not in ending:
                particle.log_weight = -math.inf
        if not ending:
            return
        rows = yield self._run.target.forward([particle.leaf.tip for particle in ending])
        for particle, logits in zip(ending, rows, strict=True):
            ends = self._run.sampler.unmasked_logprobs(logits, particle.leaf.tip)[self._eos]
            mass = float(ends.logsumexp(0))
            number = torch.rand((), generator=self._numbers(particle)(), dtype=torch.float64)
            place = int(torch.searchsorted((ends - mass).exp().cumsum(0), number)) if mass > -math.inf else 0
            self._add(particle, self._eos[min(place, len(self._eos) - 1)], mass, logits)

    def _begin(self, particles: Sequence[Particle]) -> Generator[Request | list[Request], Any, list[_Draw]]:
        """Returns the draws of the particles' next tokens, begun."""
        lazy = self._run.sampler.plain and not (self._reads_logits and self._proposer is None)
        nodes = [self._node(particle) for particle in particles]
        impossible = tuple(self._run.allowed.impossible) if self._run.allowed is not None else ()
        draws, rows = list[_Draw](), list[tuple[Any, Any, float, Tensor | None]]()
        if lazy:
            top = yield self._seat.topk(nodes, self._top, lse=True)
            logprobs = (top.logits.double() - top.lse.double()[:, None]).cpu().numpy()
            whole = self._top == self._run.model.decoder.config.vocab_size
            rests = np.log(np.maximum(1 - np.exp(logprobs).sum(1), LEAST_REST)) if not whole else [-np.inf] * len(nodes)
            known_ones = zip(top.tokens.cpu().numpy(), logprobs, rests, strict=True)
            rows = [(tokens, values, float(rest), None) for tokens, values, rest in known_ones]
        else:
            logits = yield self._seat.forward(nodes)
            rows = [
                (np.arange(len(row)), self._logprobs(row, particle), -np.inf, row)
                for row, particle in zip(logits, particles, strict=True)
            ]
        for particle, (tokens, values, rest, row) in zip(particles, rows, strict=True):
            known = TopTokens(tokens, values, rest, self._numbers(particle), impossible)
            draw = _Draw(particle, known, self._sample(known), logits=row)
            draw.go_on(None)
            draws.append(draw)
        return draws

    def _settle(self, draws: Sequence[_Draw]) -> Asked:
        """Answers what the samplers ask for until all have found a token, or none."""
        while waiting := [draw for draw in draws if draw.asks is not None]:
            checks = [draw for draw in waiting if draw.asks != REST]
            if checks:
                yield from self._check([(draw.particle.state, self._named(draw.asks)) for draw in checks])
                for draw in checks:
                    draw.go_on(bool(self._known[id(draw.particle.state), self._named(draw.asks)]))
                continue
            rows = yield self._seat.forward([self._node(draw.particle) for draw in waiting])
            for draw, logits in zip(waiting, rows, strict=True):
                draw.go_on(self._logprobs(logits, draw.particle))

    def _check(self, asked: Sequence[tuple[State, int | None]]) -> Asked:
        """Asks the constraint about tokens after states, None for an end; each question is asked once in a step."""
        fresh = {(id(state), token): (state, token) for state, token in asked}
        fresh = {key: pair for key, pair in fresh.items() if key not in self._known}
        if fresh:
            answers = yield [self._checker.call(self._run, *pair) for pair in fresh.values()]
            self._known.update(zip(fresh, answers, strict=True))

    def _log_ratios(self, draws: Sequence[_Draw]) -> Generator[Request | list[Request], Any, list[float]]:
        """Returns log p - log q for what was drawn from q."""
        tokens = [draw.found.token or 0 for draw in draws]
        if self._proposer is None:
            return [draw.tokens.log_ratio(token) for draw, token in zip(draws, tokens, strict=True)]
        if not draws:
            return []
        nodes = [draw.particle.leaf.tip for draw in draws]
        if self._run.sampler.plain and not self._reads_logits:
            named = yield self._run.target.logprobs_of(nodes, [[token] for token in tokens])
            found = [each.logprobs[token] for each, token in zip(named, tokens, strict=True)]
        else:
            rows = yield self._run.target.forward(nodes)
            for draw, row in zip(draws, rows, strict=True):
                draw.logits = row
            found = [
                float(self._run.sampler.unmasked_logprobs(row, node)[token])
                for row, node, token in zip(rows, nodes, tokens, strict=True)
            ]
        return [p - draw.tokens.logprob(token) for p, draw, token in zip(found, draws, tokens, strict=True)]

    def _add(self, particle: Particle, token: int, log_weight: float, logits: Tensor | None) -> None:
        if self._weighted:
            particle.log_weight += log_weight
        after = self._known[id(particle.state), self._named(token)]
        particle.state = after if isinstance(after, State) else particle.state
        logprob = float(logits[token] - logits.logsumexp(-1)) if self._reads_logits and logits is not None else 0.0
        self._steps.add(particle.leaf, token, logprob)
        if particle.proposal is not None:
            particle.proposal.append([token])

    def _named(self, token: int | None) -> int | None:
        """Returns a token as the constraint is asked about it: None for all end tokens."""
        return None if token in self._run.eos_token_ids else token

    def _node(self, particle: Particle) -> Node:
        tip = particle.leaf.tip if particle.proposal is None else particle.proposal.tip
        assert tip is not None, "a proposal's tree holds the prompt"
        return tip

    def _logprobs(self, logits: Tensor, particle: Particle) -> Any:
        return self._run.sampler.unmasked_logprobs(logits, particle.leaf.tip).cpu().numpy()

    def _numbers(self, particle: Particle) -> Numbers:
        return partial(self._run.random.at, particle.leaf.tip.position, particle.leaf.stream, TOKENS)


def _ask(state: State, token: int | None) -> Any:
    """Asks a constraint: the state after a token or None, or, for no token, whether the text may end."""
    return state.ends() if token is None else state.after(token)
