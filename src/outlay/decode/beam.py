"""Beam search: keep the `width` most probable beginnings, and the best finished texts by length-normalised probability.

The beams are leaves of one token tree, so what they share is computed and stored once and a beam that is dropped gives
its slots back. Scores, length penalty and early stopping follow `transformers` (`GenerationMixin._beam_search`,
version 5). Deterministic; an approximate search for the most probable text.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from outlay.engine.method import About, Method, Work
from outlay.engine.request import Request
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.tree.token_tree import Node


@dataclass(frozen=True)
class _Beam:
    """A text's last node and its score: a sum of log-probabilities while it runs, divided by length ** penalty at its
    end.
    """

    node: Node
    score: float


@dataclass(frozen=True)
class Beam(Method):
    """Searches for the most probable text by extending the best `width` beginnings together."""

    width: int = 4
    """Beams that are extended in each pass, and finished texts that are remembered."""

    length_penalty: float = 1.0
    """Exponent of the length that divides a finished text's log-probability; above 0 it favours longer texts."""

    early_stopping: bool | Literal["never"] = False
    """When to stop: true, as soon as `width` texts are finished; false, when no running beam looks likely to beat the
    worst of them; never, when none can.
    """

    about: ClassVar[About] = About(
        name="beam",
        summary="the most probable text among `width` beginnings at a time",
        paper="",
        family="search",
        spends="`width` positions a pass",
        takes=("constraint", "cache"),
        saves="keys and values, which the beams share",
        exact=False,
    )

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UsageError(f"beam needs a width of 1 or more, not {self.width}")

    def check(self, submission: Submission) -> None:
        if not submission.greedy:
            raise UsageError("beam search does not draw tokens; leave temperature at 0")
        if submission.options.stop:
            raise UsageError("beam search ends at end tokens only; leave out the stop strings")

    def decode(self, run: TreeRun) -> Work:
        limit, eos, vocab = run.max_tokens, run.eos_token_ids, run.model.decoder.config.vocab_size
        running, finished = [_Beam(run.tip, 0.0)], list[_Beam]()
        for length in range(1, limit + 1):
            grown = yield from self._best(run, running, min(max(2, 1 + len(eos)) * self.width, vocab))
            if not grown and not finished:
                run.give_up(running[0].node)
                return
            ends = [token in run.eos_token_ids or length == limit for _, token, _ in grown]
            going_on = [choice for choice, end in zip(grown, ends, strict=True) if not end][: self.width]
            ending = [choice for choice, end in zip(grown[: self.width], ends[: self.width], strict=True) if end]
            if self.early_stopping is True and len(finished) == self.width:
                ending = []
            running = self._extend(run, going_on)
            ended = self._extend(
                run, [(node, token, score / length**self.length_penalty) for node, token, score in ending]
            )
            finished = sorted([*finished, *ended], key=lambda beam: -beam.score)[: self.width]
            run.tree.prune([beam.node for beam in [*running, *finished]])
            if finished or running:
                run.offer((finished or running)[0].node)
            if not running or not self._can_improve(running, finished, length, limit):
                break
        found = finished or running
        run.suggest([(run.text_tokens(beam.node), beam.score) for beam in found] if self.width > 1 else ())
        run.accept(found[0].node)

    @staticmethod
    def _best(run: TreeRun, running: list[_Beam], count: int) -> Generator[Request, Any, list[tuple[Node, int, float]]]:
        """Returns the `count` best (parent, token, score) over all beams, best first."""
        nodes = [beam.node for beam in running]
        if run.sampler.raw:
            top = yield run.target.topk(nodes, count, lse=True)
            tokens, logprobs = top.tokens, top.logits - top.lse[:, None]
        else:
            logits = yield run.target.forward(nodes)
            rows = zip(logits.log_softmax(-1), nodes, strict=True)
            logprobs, tokens = torch.stack([run.sampler.penalized(*row) for row in rows]).topk(count)
        scores = logprobs + torch.tensor([[beam.score] for beam in running], device=logprobs.device)
        best = scores.flatten().topk(min(count, scores.numel()))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        choices = tokens.flatten().tolist()
        return [
            (nodes[index // tokens.shape[1]], choices[index], score)
            for index, score in pairs
            if score > -math.inf  # what a constraint forbids
        ]

    @staticmethod
    def _extend(run: TreeRun, choices: list[tuple[Node, int, float]]) -> list[_Beam]:
        nodes = run.tree.extend([node for node, _, _ in choices], [token for _, token, _ in choices])
        return [_Beam(node, score) for node, (_, _, score) in zip(nodes, choices, strict=True)]

    def _can_improve(self, running: list[_Beam], finished: list[_Beam], length: int, limit: int) -> bool:
        """Tells whether the search goes on, by the rule that `early_stopping` names."""
        if len(finished) < self.width:
            return True
        if self.early_stopping is True:
            return False
        longest = limit if self.early_stopping == "never" and self.length_penalty > 0 else length
        return running[0].score / longest**self.length_penalty > finished[-1].score
