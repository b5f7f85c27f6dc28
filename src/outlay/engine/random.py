"""Random streams that derive from a run's seed and a place in its tree, not from the order of execution."""

from __future__ import annotations

import torch

_MASK = (1 << 64) - 1
_SPREAD = 0x9E3779B97F4A7C15  # odd, near 2^64 over the golden ratio: its multiples lie far apart


def mix(seed: int, *key: int) -> int:
    """Returns 64 well-mixed bits of `seed` and `key` (the finalizer of SplitMix64, Steele et al. 2014)."""
    state = seed * _SPREAD & _MASK  # else the seeds 1 and 2 would have the same bits for the keys 2 and 1
    for part in key:
        state = (state ^ (part & _MASK)) + _SPREAD & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


class RandomStreams:
    """One `torch.Generator`, seeded anew for each key: the same seed and key always give the same numbers."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generator = torch.Generator()

    def at(self, *key: int) -> torch.Generator:
        """Returns the generator for a key, valid until the next call."""
        return self._generator.manual_seed(mix(self._seed, *key))

    def uniform(self, *key: int) -> float:
        """Returns the first number of a key's stream that is drawn from [0, 1)."""
        return uniform(self.at(*key))


def uniform(generator: torch.Generator) -> float:
    """Returns a number drawn from [0, 1)."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))
