"""The log-probability of given texts after a context: teacher forcing over the token tree.

The continuations of one context grow as one tree below it, so the context and common prefixes are computed once. Each
position gives the log-probabilities of the tokens that follow it, and the most probable token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from outlay.engine.method import About, Method, Work
from outlay.engine.tree_run import TreeRun


class Likelihood(NamedTuple):
    """How probable a continuation is."""

    logprob: float
    """The sum of its tokens' log-probabilities under the raw logits."""
    greedy: bool
    """Whether each token is the most probable, so that greedy decoding would write the continuation."""


@dataclass(slots=True)
class Position:
    """A place in the tree of continuations."""

    above: int
    """Index of the position above, -1 at the end of the context."""
    token: int
    """The token at this place, -1 at the end of the context."""
    followed: list[tuple[int, int]] = field(default_factory=list)
    """What follows it: pairs of a continuation's index and its next token."""


class Score(Method):
    """Scores continuations and commits nothing. It is for programs, so the catalogue does not list it.

    Attributes:
        continuations: the texts, as token ids.
        given: how many tokens at the beginning of each belong to the context.
        likelihoods: one for each continuation, once the run has ended.
    """

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

    def decode(self, run: TreeRun) -> Work:
        """Computes every position, parents before their children."""
        positions = grow(self.continuations, self.given)
        nodes = [run.tip]
        if all(position.above == index - 1 for index, position in enumerate(positions)):
            run.tree.append([position.token for position in positions[1:]])  # a chain takes one span of the cache
            nodes = run.tip.path()[-len(positions) :]
        else:
            below = positions[1:]
            nodes += run.tree.extend([position.above - 1 for position in below], [position.token for position in below])

        follow = [[token for _, token in position.followed] for position in positions]
        found = yield run.target.logprobs_of(nodes, follow)
        totals, greedy = [0.0] * len(self.continuations), [True] * len(self.continuations)
        for position, (best, logprobs) in zip(positions, found, strict=True):
            for index, token in position.followed:
                totals[index] += logprobs[token]
                greedy[index] &= token == best
        self.likelihoods = list(map(Likelihood, totals, greedy))


def grow(continuations: Sequence[Sequence[int]], given: int = 0) -> list[Position]:
    """Returns the tree of all tokens but each continuation's last, parents first, from the end of the prompt.

    Args:
        continuations: the texts, as token ids.
        given: index of the first token that is scored.
    """
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
