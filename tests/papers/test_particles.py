"""Particle filtering: the properties of its specification, on chains whose texts can be enumerated."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from outlay import LM, Particles, StepBeam
from outlay.engine.engine import Engine
from outlay.testing import markov_model

STAY = 0.6
DEPTH = 3


def chain_lm():
    """A model that writes a and b alone, each again with probability `STAY`."""
    transitions = torch.zeros(257, 257, dtype=torch.float64)
    a, b = ord("a") - 33, ord("b") - 33
    transitions[:, a], transitions[:, b] = 1 - STAY, STAY
    transitions[a, a], transitions[a, b] = STAY, 1 - STAY
    return LM(markov_model(transitions), Engine())


def psi(prompt, texts):
    return [0.15 + 0.7 * text.count("a") / max(1, len(text)) for text in texts]


def probability(text):
    return math.prod(STAY if one == other else 1 - STAY for one, other in itertools.pairwise("b" + text))


def texts_of_all_letters():
    return ["".join(letters) for letters in itertools.product("ab", repeat=DEPTH)]


class Listening(Particles):
    """Keeps the last population of each filter."""

    def _filter(self, *given):
        found = yield from super()._filter(*given)
        SEEN.append(found[0])
        return found


SEEN = []


def populations(method, scorer, seeds=(0,)):
    SEEN.clear()
    lm = chain_lm()
    for seed in seeds:
        lm.generate("b", method=method, scorer=scorer, temperature=1, max_tokens=DEPTH, seed=seed, chat=False,
                    ignore_eos=True)  # fmt: skip
    return list(SEEN)


RUNS, PARTICLES = 8, 400


@pytest.mark.slow
@pytest.mark.parametrize(("potential", "resample"), [("ratio", "multinomial"), ("score", "systematic")])
def test_with_many_particles_texts_follow_the_target(potential, resample):
    """Total variation below 0.03: of p(x) psi(x) for ratio, of p(x) times all potentials for score."""
    method = Listening(n=PARTICLES, potential=potential, odds=False, resample=resample, step="", step_tokens=1)
    found = Counter()
    for population in populations(method, psi, range(RUNS)):
        weights = population.log_weights.softmax(0) / RUNS
        for leaf, weight in zip(population.leaves, weights.tolist(), strict=True):
            found[leaf.data.decode()] += weight
    wanted = {}
    for text in texts_of_all_letters():
        scored = psi("", [text[: end + 1] for end in range(DEPTH)])
        wanted[text] = probability(text) * (math.prod(scored) if potential == "score" else scored[-1])
    total = sum(wanted.values())
    assert sum(abs(found[text] - weight / total) for text, weight in wanted.items()) / 2 < 0.03


def test_constant_rewards_give_uniform_weights():
    (population,) = populations(Listening(n=8, step="", step_tokens=1), lambda prompt, texts: [0.5] * len(texts))
    assert population.log_weights.softmax(0).tolist() == pytest.approx([1 / 8] * 8)


def test_all_weight_on_one_text_makes_all_copies_equal():
    """Reward 1 for "a..." and 0 for the others: after the first step all particles begin alike."""

    def first(prompt, texts):
        return [float(text.startswith("a")) for text in texts]

    (population,) = populations(Listening(n=8, step="", step_tokens=1), first, seeds=(1,))
    assert {leaf.data[:1] for leaf in population.leaves} == {b"a"}
    assert len({leaf.data for leaf in population.leaves}) > 1  # copies go on by random numbers of their own


def test_absorbing_texts_are_neither_copied_nor_dropped():
    """Texts of one letter that end are set aside, though those that go on have far higher rewards."""
    transitions = torch.zeros(257, 257, dtype=torch.float64)
    a, end = ord("a") - 33, 256
    transitions[:, a], transitions[:, end] = 0.5, 0.5
    lm = LM(markov_model(transitions), Engine())
    kept = {}
    for absorbing in (False, True):
        SEEN.clear()
        method = Listening(n=16, absorbing=absorbing, step="", step_tokens=1)
        lm.generate("x", method=method, scorer=lambda prompt, texts: [0.01 if not t else 0.99 for t in texts],
                    temperature=1, max_tokens=2, seed=4, chat=False)  # fmt: skip
        kept[absorbing] = sum(leaf.data == b"" for leaf in SEEN[0].leaves)
    assert kept[False] == 0
    assert kept[True] > 3


def test_gibbs_sweeps_retain_the_text_that_was_drawn_last():
    """The retained text is particle 0 of the next sweep, letter by letter."""
    found = populations(Listening(n=4, sweeps=3, step="", step_tokens=1), psi, seeds=range(6))
    for one, other in itertools.pairwise(found):
        if (found.index(other) % 3) != 0:
            assert other.leaves[0].data in {leaf.data for leaf in one.leaves}


def families_that_go_on(dvts, seed):
    """The families, of two steps each, that the beginnings of the second round come from."""
    events = []
    chain_lm().generate("b", method=StepBeam(n=8, width=2, dvts=dvts, step="", step_tokens=1), seed=seed,
                        scorer=lambda prompt, texts: [float(text.startswith("a")) for text in texts],
                        temperature=1, max_tokens=2, chat=False, trace=events.append)  # fmt: skip
    rounds = {
        number: [e["node"] for e in events if e["event"] == "mark" and e.get("round") == number] for number in (1, 2)
    }
    parents = {row["node"]: row["parent"] for event in events if event["event"] == "grow" for row in event["nodes"]}
    return sorted({rounds[1].index(parents[node]) // 2 for node in rounds[2]})


def test_dvts_keeps_its_beginnings_apart():
    """Beam search lets two steps of one beginning go on in place of another's, DVTS does not."""
    assert all(families_that_go_on(True, seed) == [0, 1, 2, 3] for seed in range(6))
    assert any(len(families_that_go_on(False, seed)) < 4 for seed in range(6))
