"""A distribution over tokens, and orders in which they are drawn from it without replacement (Gumbel-top-k)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

REST = -1  # asked for in place of a token: the log-probabilities of all tokens
LEAST_REST = 1e-6  # of the mass behind the top: a float32 log-sum-exp doesn't tell less from none

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Numbers = Callable[..., torch.Generator]
"""Gives the random generator of a key of whole numbers; the same for the same key."""


class Visit(NamedTuple):
    """A drawn token, with its log-probability in the distribution before anything was drawn."""

    token: int
    logprob: float


class Order(Protocol):
    """Tokens in an order drawn without replacement."""

    def visit(self) -> Generator[int, Any, Visit | None]:
        """Returns the next token, None where none is left: `found = yield from order.visit()`. May ask for `REST`."""


class Distribution(Protocol):
    """What a sampler draws from."""

    @property
    def largest(self) -> float:
        """The probability of the most probable token."""

    def order(self, loop: int, without: Sequence[int] = ()) -> Order:
        """Returns a fresh order of all tokens but those in `without`; each `loop` has random numbers of its own."""

    def uniform(self, *key: int) -> float:
        """Returns a random number from [0, 1), the same for the same key."""


class TopTokens:
    """A distribution whose most probable tokens are known; all others together are one candidate.

    That candidate's mass is an estimate, so tokens are drawn from a distribution q near p, and `log_ratio` corrects for
    it.

    Args:
        tokens: The most probable tokens, int64 [k].
        logprobs: Their log-probabilities, float64 [k].
        rest: The log-probability of all other tokens together; -inf where there are none.
        numbers: The random generators.
        impossible: Tokens that are never accepted: they are left out before anything is drawn.
    """

    def __init__(
        self, tokens: Ints, logprobs: Floats, rest: float, numbers: Numbers, impossible: Sequence[int] = ()
    ) -> None:
        self._numbers, self._impossible = numbers, list(impossible)
        possible = ~np.isin(tokens, self._impossible) & (logprobs > -np.inf)
        self._log_kept = float(np.logaddexp.reduce([*logprobs[possible], rest]))
        self._tokens, self._logprobs = tokens[possible], logprobs[possible] - self._log_kept
        self._rest = self._assumed = rest - self._log_kept
        self._behind: tuple[Ints, Floats] | None = None

    @property
    def largest(self) -> float:
        return float(np.exp(self._logprobs.max(initial=-np.inf)))

    def log_ratio(self, token: int) -> float:
        """Returns log p - log q of a token: for the mass that was left out, and for the estimate behind the top."""
        behind = self._behind is not None and not bool(np.isin(token, self._tokens))
        return self._log_kept + (self._rest - self._assumed if behind else 0.0)

    def logprob(self, token: int) -> float:
        """Returns log q of a token that was drawn."""
        for tokens, logprobs in ((self._tokens, self._logprobs), *filter(None, [self._behind])):
            place = np.flatnonzero(tokens == token)
            if len(place):
                return float(logprobs[place[0]])
        return -np.inf

    def fill(self, logprobs: Floats) -> None:
        """Takes in the log-probabilities of all tokens, float64 [vocab]."""
        behind = logprobs - self._log_kept
        behind[self._tokens] = -np.inf
        behind[self._impossible] = -np.inf
        tokens = np.flatnonzero(behind > -np.inf)
        self._rest = float(np.logaddexp.reduce(behind[tokens], initial=-np.inf))
        self._behind = tokens, behind[tokens] - self._rest + self._assumed

    def order(self, loop: int, without: Sequence[int] = ()) -> GumbelOrder:
        return GumbelOrder(self, loop, without)

    def uniform(self, *key: int) -> float:
        return float(torch.rand((), generator=self._numbers(2, *key), dtype=torch.float64))


class GumbelOrder:
    """Tokens by decreasing key, log p + Gumbel noise."""

    def __init__(self, distribution: TopTokens, loop: int, without: Sequence[int]) -> None:
        self._all, self._loop = distribution, loop
        tokens, logprobs, rest = distribution._tokens, distribution._logprobs, distribution._assumed
        if distribution._behind is not None:
            more = distribution._behind
            tokens, logprobs, rest = np.concatenate([tokens, more[0]]), np.concatenate([logprobs, more[1]]), -np.inf
        noise = _gumbel(distribution._numbers(0, loop), len(tokens) + 1)
        self._rest_key = rest + noise[-1]
        self._sort(tokens, logprobs, logprobs + noise[:-1])
        if without:
            left = ~np.isin(self._tokens, without)
            self._sort(self._tokens[left], self._logprobs[left], self._keys[left])

    def visit(self) -> Generator[int, Any, Visit | None]:
        if self._rest_key > -np.inf and (self._at == len(self._keys) or self._rest_key > self._keys[self._at]):
            if self._all._behind is None:
                self._all.fill((yield REST))
            self._open_rest()
        if self._at == len(self._keys):
            return None
        self._at += 1
        return Visit(int(self._tokens[self._at - 1]), float(self._logprobs[self._at - 1]))

    def _open_rest(self) -> None:
        """Adds the tokens behind the top, given that the largest of their keys is `_rest_key`.

        Keys that are drawn freely are shifted to that maximum (Kool et al. 2019, appendix B.3).
        """
        assert self._all._behind is not None, "filled before"
        tokens, logprobs = self._all._behind
        top, self._rest_key = self._rest_key, -np.inf
        if not len(tokens):
            return
        free = logprobs + _gumbel(self._all._numbers(1, self._loop), len(tokens))
        with np.errstate(divide="ignore"):
            v = top - free + np.log1p(-np.exp(free - free.max()))
        keys = top - np.maximum(v, 0) - np.log1p(np.exp(-np.abs(v)))
        at = self._at
        self._sort(
            np.concatenate([self._tokens[at:], tokens]),
            np.concatenate([self._logprobs[at:], logprobs]),
            np.concatenate([self._keys[at:], keys]),
        )

    def _sort(self, tokens: Ints, logprobs: Floats, keys: Floats) -> None:
        order = np.argsort(-keys, kind="stable")
        self._tokens, self._logprobs, self._keys, self._at = tokens[order], logprobs[order], keys[order], 0


def _gumbel(generator: torch.Generator, count: int) -> Floats:
    noise: Floats = -torch.empty(count, dtype=torch.float64).exponential_(generator=generator).log().numpy()
    return noise
