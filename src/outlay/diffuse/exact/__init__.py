"""Exact denoisers: models whose marginals are computed from a known distribution, so that rules are tested in seconds.

`outlay.load("exact-phrase")` loads one, with options if need be: `"exact-phrase:noise=0.05x0.1x0.2,seed=3"`.
"""

from __future__ import annotations

from outlay.diffuse.exact.denoiser import ExactDenoiser, exact_model
from outlay.diffuse.exact.lists import Copy, Permutation, ReplaceOne, Reverse
from outlay.diffuse.exact.sequences import Markov, Phrase

PREFIX = "exact-"
DENOISERS: dict[str, type[ExactDenoiser]] = {
    PREFIX + kind.name: kind for kind in (Copy, Markov, Permutation, Phrase, ReplaceOne, Reverse)
}


def is_exact(source: object) -> bool:
    """Tells whether a model's name is that of an exact denoiser."""
    return isinstance(source, str) and source.startswith(PREFIX)


__all__ = ["DENOISERS", "ExactDenoiser", "exact_model", "is_exact"]
