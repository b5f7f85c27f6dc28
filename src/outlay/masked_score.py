"""The log-probability of given texts under a model that fills masks: a Monte Carlo estimate of its bound (Nie et al.
2025, LLaDA, section 2).

A number k of the A tokens of an answer is drawn uniformly, k of them are masked at random places, and A / k times the
sum of their log-probabilities is one estimate. Its mean is a lower bound of the answer's log-probability, and the
log-probability itself where the model's marginals are those of one distribution. Under block-causal attention each
block is masked apart behind the true blocks before it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator, Sequence
from typing import Any, ClassVar

import torch

from outlay.engine.method import About, Method, Work
from outlay.engine.request import Request
from outlay.engine.run import Run
from outlay.engine.seat import Seat
from outlay.engine.submission import Submission
from outlay.engine.text_run import TextRun
from outlay.errors import UsageError
from outlay.models.config import MaskedDiffusion
from outlay.score import Likelihood

DRAWS = 128  # masks of an answer that are drawn (LLaDA's own evaluation)
TOGETHER = 2048  # positions of canvases side by side in a pass; a bound on memory, not tuned
Sketch = tuple[list[int], list[int]]
"""The tokens of a canvas up to the end of a block, and the positions that are masked."""


class MaskedScore(Method):
    """Scores continuations and commits nothing. It is for programs, so the catalogue does not list it.

    Attributes:
        continuations: the texts, as token ids.
        draws: masks of each that are drawn; one is enough for a text of one token.
        likelihoods: one for each continuation, once the run has ended: `greedy` tells whether filling the most
            confident position first, one by one, writes the continuation.
    """

    about: ClassVar[About] = About(
        name="masked_score",
        summary="an estimate of the log-probability of given continuations",
        paper="Nie et al. 2025, LLaDA",
        family="scoring",
        spends="a canvas for each draw and block, and one for each token that greedy filling writes",
        saves="",
    )
    run_type: ClassVar[type[Run]] = TextRun

    def __init__(self, continuations: Sequence[Sequence[int]], draws: int = DRAWS) -> None:
        self.continuations, self.draws = continuations, draws
        self.likelihoods: list[Likelihood] = []

    def check(self, submission: Submission) -> None:
        diffusion = submission.model.decoder.config.diffusion
        if diffusion is None:
            raise UsageError(f"{submission.model.name} writes from left to right, so its likelihoods are exact: score")
        if any(diffusion.mask in tokens for tokens in self.continuations):
            raise UsageError(f"a continuation has token {diffusion.mask}, the mask of {submission.model.name}")
        longest = len(submission.prompt) + max(map(len, self.continuations))
        if longest > submission.context:
            raise UsageError(
                f"the longest continuation ends at token {longest}, but {submission.model.name} reads "
                f"{submission.context} tokens of a text"
            )

    def decode(self, run: TextRun) -> Work:
        """Scores one continuation after the other."""
        seat = run.seat(run.model, (), "target")
        for number, tokens in enumerate(self.continuations):
            total = yield from self._estimate(run, seat, list(tokens), number)
            greedy = yield from self._greedy(run, seat, list(tokens))
            self.likelihoods.append(Likelihood(total, greedy))

    def _estimate(
        self, run: TextRun, seat: Seat, tokens: list[int], number: int
    ) -> Generator[Request | list[Request], Any, float]:
        """Returns the mean of the estimates of a continuation's log-probability."""
        diffusion = _diffusion(run)
        text, begin = [*run.prompt, *tokens], len(run.prompt)
        draws = self.draws if len(tokens) > 1 else 1
        chance = random.Random(f"masked score/{run.options.seed}/{number}")
        sketches: list[tuple[Sketch, float]] = []
        for _ in range(draws):
            for first, end in blocks(begin, len(text), diffusion.block):
                count = chance.randint(1, end - first)
                masked = sorted(chance.sample(range(first, end), count))
                canvas = [diffusion.mask if place in {*masked} else token for place, token in enumerate(text[:end])]
                sketches.append(((canvas, masked), (end - first) / count))
        total = 0.0
        side = max(1, TOGETHER // len(text))
        for start in range(0, len(sketches), side):
            part = sketches[start : start + side]
            found = yield from _logits(seat, [sketch for sketch, _ in part], diffusion)
            for ((_, masked), weight), logits in zip(part, found, strict=True):
                wanted = torch.tensor([text[place] for place in masked])[:, None]
                logprobs = logits.double().log_softmax(-1).gather(1, wanted)
                total += weight * float(logprobs.sum())
        return total / draws

    def _greedy(self, run: TextRun, seat: Seat, tokens: list[int]) -> Generator[Request | list[Request], Any, bool]:
        """Returns whether filling the most confident position first writes the continuation; stops where it doesn't."""
        diffusion = _diffusion(run)
        begin, end = len(run.prompt), len(run.prompt) + len(tokens)
        written = [*run.prompt, *[diffusion.mask] * len(tokens)]
        for first, last in blocks(begin, end, diffusion.block):
            while masked := [place for place in range(first, last) if written[place] == diffusion.mask]:
                (logits,) = yield from _logits(seat, [(written[:last], masked)], diffusion)
                logprobs, best = logits.log_softmax(-1).max(-1)
                surest = int(logprobs.argmax())
                written[masked[surest]] = int(best[surest])
                if written[masked[surest]] != tokens[masked[surest] - begin]:
                    return False
        return True


def blocks(begin: int, end: int, size: int) -> list[tuple[int, int]]:
    """Returns the parts of a text that are masked apart, as (begin, end).

    Args:
        begin: Position of the first token of the answer.
        end: The position behind its last.
        size: Positions of a block of block-causal attention, counted from that of the text; 0: one part.
    """
    if not size or begin == end:
        return [(begin, end)] if end > begin else []
    edges = [begin, *range((begin // size + 1) * size, end, size), end]
    return list(itertools.pairwise(edges))


def _logits(
    seat: Seat, sketches: Sequence[Sketch], diffusion: MaskedDiffusion
) -> Generator[Request | list[Request], Any, list[torch.Tensor]]:
    """Asks for the logits of the masked positions of canvases side by side, each float32 [masked, vocab]."""
    canvases = [seat.canvas(tokens, block=diffusion.block) for tokens, _ in sketches]
    asked: list[Request] = [
        seat.denoise(canvas, range(len(tokens)), masked)
        for canvas, (tokens, masked) in zip(canvases, sketches, strict=True)
    ]
    found: list[torch.Tensor] = yield asked
    for canvas in canvases:
        seat.drop(canvas)
    return found


def _diffusion(run: TextRun) -> MaskedDiffusion:
    diffusion = run.model.decoder.config.diffusion
    assert diffusion is not None, "checked when it was submitted"
    return diffusion
