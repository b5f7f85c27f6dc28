"""Exact denoisers of endless texts after "^": a Markov chain of letters, and phrases in slots."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from outlay.diffuse.exact.denoiser import IDS, LETTERS, MASK, START, VOCAB, ExactDenoiser, Probs, Tokens
from outlay.errors import UsageError


class _Sequence(ExactDenoiser):
    """A text of letters, after "^" if it stands there. Letters of the prompt are what the text begins with."""

    def given(self, text: Tokens) -> int:
        return int(len(text) > 0 and text[0] == IDS[START])

    def marginals(self, tokens: Tokens) -> Probs:
        start = self.given(tokens)
        found = np.zeros((len(tokens), VOCAB))
        found[:start, IDS[START]] = 1.0
        if len(tokens) > start:
            found[start:, : len(LETTERS)] = self._letters(tokens[start:])
        return found

    def _letters(self, tokens: Tokens) -> Probs:
        """Returns the distribution over letters of each position, [length, 26]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Markov(_Sequence):
    """A Markov chain: its first letter and all transitions are drawn from a Dirichlet distribution."""

    name: ClassVar[str] = "markov"

    letters: int = 8
    """How many letters there are."""
    alpha: float = 0.3
    """Concentration: the lower, the surer the next letter."""
    seed: int = 0
    """What the chain is drawn from."""

    def __post_init__(self) -> None:
        if not 1 <= self.letters <= len(LETTERS):
            raise UsageError(f"letters must be from 1 to {len(LETTERS)}, not {self.letters}")

    @cached_property
    def chain(self) -> tuple[Probs, Probs]:
        """The distribution of the first letter [letters], and the transitions [letters, letters]."""
        rng = np.random.default_rng(self.seed)
        rows = rng.dirichlet(np.full(self.letters, self.alpha), self.letters + 1)
        rows = (rows + 1e-6) / (1 + self.letters * 1e-6)
        return rows[0], rows[1:]

    def entropy(self, length: int) -> float:
        """Returns the entropy of a text by its number of letters, in nats."""
        first, steps = self.chain
        total, law = -float((first * np.log(first)).sum()), first
        for _ in range(length - 1):
            total -= float((law[:, None] * steps * np.log(steps)).sum())
            law = law @ steps
        return total

    def _letters(self, tokens: Tokens) -> Probs:
        first, steps = self.chain
        seen = np.where(tokens[:, None] == MASK, 1.0, np.eye(VOCAB)[tokens][:, : self.letters])
        forward, backward = np.empty_like(seen), np.ones_like(seen)
        for place in range(len(tokens)):
            before = first if place == 0 else _normed(forward[place - 1] * seen[place - 1]) @ steps
            forward[place] = before
        for place in range(len(tokens) - 2, -1, -1):
            backward[place] = _normed(steps @ (backward[place + 1] * seen[place + 1]))
        found = np.zeros((len(tokens), len(LETTERS)))
        found[:, : self.letters] = _normed(forward * backward)
        return found


@dataclass(frozen=True)
class Phrase(_Sequence):
    """Slots that each hold one of some random phrases; the phrases of the slots are a Markov chain."""

    name: ClassVar[str] = "phrase"

    phrases: int = 64
    """How many phrases there are."""
    length: int = 8
    """Letters of a phrase."""
    alpha: float = 0.0
    """Concentration of the Dirichlet distribution of the next phrase; 0: slots are independent and uniform."""
    noise: tuple[float, ...] = (0.0,)
    """For each letter of a phrase, the probability that a random one stands in its place; repeated as need be."""
    seed: int = 0
    """What phrases and transitions are drawn from."""

    def __post_init__(self) -> None:
        if self.phrases < 1 or self.length < 1:
            raise UsageError("phrases and length must be 1 or more")
        if not all(0 <= part <= 1 for part in self.noise):
            raise UsageError(f"noise must be from 0 to 1, not {self.noise}")

    @cached_property
    def table(self) -> Tokens:
        """The phrases, [phrases, length]."""
        return np.random.default_rng(self.seed).integers(len(LETTERS), size=(self.phrases, self.length))

    @cached_property
    def steps(self) -> Probs:
        """The distribution of the next phrase, a row for each, [phrases, phrases]."""
        if self.alpha == 0:
            return np.full((self.phrases, self.phrases), 1 / self.phrases)
        rng = np.random.default_rng(self.seed + 1)
        return rng.dirichlet(np.full(self.phrases, self.alpha), self.phrases)

    @cached_property
    def emissions(self) -> Probs:
        """The distribution of each letter of each phrase, [phrases, length, 26]."""
        noise = np.resize(np.array(self.noise, dtype=np.float64), self.length)[None, :, None]
        return (1 - noise) * np.eye(len(LETTERS))[self.table] + noise / len(LETTERS)

    def nll(self, text: Tokens) -> float:
        letters = text[self.given(text) :]
        law, total = np.full(self.phrases, 1 / self.phrases), 0.0
        for slot in self._likelihoods(letters):
            joint = law * slot
            weight = float(joint.sum())
            if weight <= 0:
                return np.inf
            total -= float(np.log(weight))
            law = (joint / weight) @ self.steps
        return total

    def entropy(self, slots: int) -> float:
        """Returns the entropy of a number of slots, in nats, where no letter is noise and no two phrases are alike."""
        with np.errstate(divide="ignore", invalid="ignore"):
            row = -np.nan_to_num(self.steps * np.log(self.steps)).sum(1)
        law, total = np.full(self.phrases, 1 / self.phrases), float(np.log(self.phrases))
        for _ in range(slots - 1):
            total += float(law @ row)
            law = law @ self.steps
        return total

    def invalid_slots(self, text: Tokens) -> int:
        """Returns how many whole slots of a text hold no phrase."""
        letters = text[self.given(text) :]
        slots = letters[: len(letters) // self.length * self.length].reshape(-1, self.length)
        known = {tuple(phrase) for phrase in self.table}
        return sum(tuple(slot) not in known for slot in slots)

    def _letters(self, tokens: Tokens) -> Probs:
        likelihoods = self._likelihoods(tokens)
        count = len(likelihoods)
        forward, backward = np.empty_like(likelihoods), np.ones_like(likelihoods)
        law = np.full(self.phrases, 1 / self.phrases)
        for slot in range(count):
            forward[slot] = law
            law = _normed(law * likelihoods[slot]) @ self.steps
        for slot in range(count - 2, -1, -1):
            backward[slot] = _normed(self.steps @ (backward[slot + 1] * likelihoods[slot + 1]))
        posterior = _normed(forward * likelihoods * backward)
        found = np.einsum("sk,kla->sla", posterior, self.emissions)
        return found.reshape(-1, len(LETTERS))[: len(tokens)]

    def _likelihoods(self, tokens: Tokens) -> Probs:
        """Returns the probability of each slot's letters under each phrase, [slots, phrases]."""
        slots = -(-len(tokens) // self.length)
        padded = np.full(slots * self.length, MASK)
        padded[: len(tokens)] = tokens
        likelihoods = np.ones((slots, self.phrases))
        for place in range(self.length):
            letters = padded[place :: self.length]
            table = np.concatenate([self.emissions[:, place], np.ones((self.phrases, VOCAB - len(LETTERS)))], 1)
            likelihoods *= table[:, letters].T
        return likelihoods


def _normed(weights: Probs) -> Probs:
    """Returns weights [..., n] that sum to 1; equal ones where all are 0, as where no text is possible any more."""
    total = weights.sum(-1, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1), 1 / weights.shape[-1])
