"""How probable given texts are after a context: teacher forcing over the token tree.

The continuations of one context grow as one tree below it, so the context, and what they begin with alike, is computed
once. Each position gives the log-probability of the tokens that follow it, and whether one of them is the most
probable. Logits are reduced to these numbers a few rows at a time: those of a long text are never held together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from torch import Tensor

from outlay.engine.method import About, Method, Work
from outlay.engine.run import Run
from outlay.tree.token_tree import Node

ROWS = 128  # rows of logits asked for at a time: half of what a pass prefills, 25 MB for a vocabulary of 49152


class Likelihood(NamedTuple):
    """Of a continuation: the sum of its tokens' log-probabilities under the raw logits, and whether each is the most
    probable, as greedy decoding would have it."""

    logprob: float
    greedy: bool


@dataclass
class Position:
    """A place in the tree of continuations: the `token` below the position with index `above` (-1 for both at the
    context's end), and what follows it, as pairs of a continuation's index and its next token."""

    above: int
    token: int
    followed: list[tuple[int, int]] = field(default_factory=list)


class Score(Method):
    """Commits nothing; when the run has ended, `likelihoods` has one entry for each of `continuations`, lists of token
    ids. The first `given` tokens of each belong to the context. For programs, so the catalogue does not list it."""

    about: ClassVar[About] = About(
        name="score",
        summary="the log-probability of given continuations",
        paper="",
        family="scoring",
        spends="one position for each context and continuation token",
        saves="what contexts and continuations share",
    )

    def __init__(self, continuations: Sequence[Sequence[int]], given: int = 0) -> None:
        self.continuations, self.given = continuations, given
        self.likelihoods: list[Likelihood] = []

    def decode(self, run: Run) -> Work:
        """Computes every position, parents before their children, and reduces its logits at once."""
        self.likelihoods = [Likelihood(0.0, True) for _ in self.continuations]
        positions = grow(self.continuations, self.given)
        chain = all(position.above == index - 1 for index, position in enumerate(positions))
        nodes: list[Node] = []
        for first in range(0, len(positions), ROWS):
            part = positions[first : first + ROWS]
            for position in part:
                at_end = position.above < 0
                nodes += [run.tip] if at_end else run.tree.extend([nodes[position.above]], [position.token])
            logits = yield run.target.forward(nodes[first:])
            self._add(part, logits)
            if chain:
                run.tree.keep(nodes[-1])  # decided tokens are planned as one span, loose ones each by its path

    def _add(self, positions: Sequence[Position], logits: Tensor) -> None:
        """Adds what logits [positions, vocab] say about the tokens that follow."""
        logprobs = logits.log_softmax(-1)  # its float32 sum, and no better one, is what others compare with
        best = logits.argmax(-1).tolist()
        for row, position in enumerate(positions):
            for index, token in position.followed:
                before = self.likelihoods[index]
                logprob = before.logprob + float(logprobs[row, token])
                self.likelihoods[index] = Likelihood(logprob, before.greedy and token == best[row])


def grow(continuations: Sequence[Sequence[int]], given: int = 0) -> list[Position]:
    """Returns the tree of all tokens but each continuation's last, parents first, from the prompt's end on. What
    follows is noted from the token with index `given` on."""
    positions = [Position(-1, -1)]
    below: dict[tuple[int, int], int] = {}
    for index, tokens in enumerate(continuations):
        place = 0
        for length, token in enumerate(tokens, 1):
            if length > given:
                positions[place].followed.append((index, token))
            if length == len(tokens):
                break
            if (place, token) not in below:
                below[place, token] = len(positions)
                positions.append(Position(place, token))
            place = below[place, token]
    return positions
