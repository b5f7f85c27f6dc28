"""Chains whose texts can be enumerated: how far texts are from the exact posterior under a constraint.

The posterior is p(text | constraint). Masks renormalise each token by itself, and so draw from another distribution.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from outlay.constrain import Constraint, Predicate
from outlay.engine.engine import Engine
from outlay.lm import LM
from outlay.testing import END, markov_model, tiny_model

START = "s"
Rows = Mapping[str, Mapping[str, float]]
"""The distribution of the next letter after each; "" is the end."""
DEAD_ENDS: Rows = {
    "s": {"b": 0.9, "a": 0.1},
    "a": {"a": 0.9, "": 0.1},
    "b": {"c": 1e-3, "s": 0.999},
    "c": {"c": 1e-3, "s": 0.899, "": 0.1},
}
"""The paper's: nearly all texts begin with b, after which nothing likely is allowed."""
LETTERS: Rows = {
    "s": {"a": 0.5, "b": 0.3, "c": 0.2},
    "a": {"a": 0.2, "b": 0.5, "c": 0.1, "": 0.2},
    "b": {"a": 0.1, "b": 0.2, "c": 0.5, "": 0.2},
    "c": {"a": 0.4, "b": 0.1, "c": 0.2, "": 0.3},
}
LONGEST = 5


def measured(particles: int, runs: int) -> dict[str, dict[str, float]]:
    """Returns for each chain the distances of AWRS and of masks to the posterior, and the weight of its likeliest text.

    Args:
        particles: Of AWRS.
        runs: Of AWRS on each chain. The distribution of masks is computed.
    """
    found = {}
    for name, rows, texts in (("dead ends", DEAD_ENDS, ("aaaa", "bccc")), ("letters", LETTERS, tuple(language()))):
        posterior = normalised({text: probability(rows, text) for text in texts})
        lm, given = chain(rows), late_checker(texts)
        ours = mean_weights(several(lm, given, f"awrs:particles={particles}", runs))
        masks = by_masks(rows, texts)
        likeliest = max(posterior, key=lambda text, law=posterior: law[text])  # type: ignore[misc]
        found[name] = {
            "posterior": posterior[likeliest],
            "awrs_weight": ours.get(likeliest, 0.0),
            "masks_weight": masks.get(likeliest, 0.0),
            "awrs_distance": distance(ours, posterior),
            "masks_distance": distance(masks, posterior),
        }
    return found


def language() -> list[str]:
    """Returns the texts of at most `LONGEST` letters that hold one c, which is not their first."""
    words = ("".join(word) for length in range(1, LONGEST + 1) for word in itertools.product("abc", repeat=length))
    return [word for word in words if word.count("c") == 1 and not word.startswith("c")]


def late_checker(texts: Sequence[str]) -> Constraint:
    """Returns a checker of these texts; each beginning of one is allowed, and so are some that lead nowhere."""
    whole = {text.encode() for text in texts}
    begun = {text[:end] for text in whole for end in range(len(text) + 1)}
    return Predicate(lambda data: data in whole, lambda data: data in begun)


def chain(rows: Rows) -> LM:
    """Returns a model over bytes with these rows; after all other bytes comes the end."""
    tokens = {letter: tiny_model().tokenizer.encode(letter)[0] if letter else END for letter in ("", *rows)}
    law = torch.zeros(END + 1, END + 1, dtype=torch.float64)
    law[:, END] = 1.0
    for letter, row in rows.items():
        law[tokens[letter]] = 0.0
        for after, chance in row.items():
            law[tokens[letter], tokens[after]] = chance
    return LM(markov_model(law, f"chain-{len(rows)}"), Engine(prefix_cache=False))


def probability(rows: Rows, text: str) -> float:
    """Returns the probability of a text with its end."""
    chance, last = 1.0, START
    for letter in (*text, ""):
        chance, last = chance * rows[last].get(letter, 0.0), letter
    return chance


def by_masks(rows: Rows, texts: Sequence[str]) -> dict[str, float]:
    """Returns the distribution of texts under masks: each letter is drawn from those that a text goes on with."""
    found = {}
    for text in texts:
        chance, last = 1.0, START
        for place, letter in enumerate((*text, "")):
            following = {(*other, "")[place] for other in texts if other.startswith(text[:place])}
            chance *= rows[last].get(letter, 0.0) / sum(rows[last].get(each, 0.0) for each in following)
            last = letter
        found[text] = chance
    return found


def several(lm: LM, constraint: Constraint, method: str, runs: int) -> list[Any]:
    """Returns the results of runs with seeds of their own."""
    with lm.engine.together():
        handles = [
            lm.submit(lm.encode(START, chat=False), method=method, constraint=constraint, temperature=1.0,
                      max_tokens=LONGEST + 1, seed=seed)
            for seed in range(runs)
        ]  # fmt: skip
    return [handle.result() for handle in handles]


def mean_weights(results: Sequence[Any]) -> dict[str, float]:
    """Returns each text's weight, the mean over the results that have one."""
    weights: dict[str, float] = {}
    for result in results:
        for each in result.alternatives:
            weights[each.text] = weights.get(each.text, 0.0) + each.score
    return normalised(weights)


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Returns weights with a sum of 1."""
    total = sum(weights.values())
    return {text: weight / total for text, weight in weights.items()}


def distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Returns the total variation between two distributions of texts."""
    return sum(abs(one.get(text, 0.0) - other.get(text, 0.0)) for text in {*one, *other}) / 2
