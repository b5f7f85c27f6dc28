"""Shared by the tests of methods: random distributions, and texts compared with exact probabilities."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import torch

from outlay import LM
from outlay.engine.engine import Engine
from outlay.engine.sampling import Sampling, distribution
from outlay.testing import markov_model

# The chance that a right method fails a test of this kind with one seed. Seeds are fixed: a test that passes, passes.
FALSE_ALARM = 1e-4
AT_A_TIME = 4000  # runs that are handed in together, which an engine lets wait


def random_probs(size, seed, concentration=0.7):
    """A distribution, float64 [size], from a Dirichlet with this concentration."""
    gamma = np.random.default_rng(seed).gamma(concentration, size=size)
    return torch.from_numpy(gamma / gamma.sum())


def random_chain(size, seed, concentration=0.7):
    """The laws of a Markov chain, float64 [size, size]."""
    return torch.stack([random_probs(size, 1000 * seed + state, concentration) for state in range(size)])


def markov_lm(size, seed):
    return LM(markov_model(random_chain(size, seed), f"target{seed}"), Engine(prefix_cache=False))


def exact_probs(lm, start, length, sampling):
    """The law of the first `length` tokens after `start`: a dict from texts to probabilities."""
    size = lm.model.decoder.config.vocab_size
    logits = lm.model.decoder.lm_head(torch.eye(size))
    laws = distribution(logits, sampling).double().tolist()
    law = {}
    for text in itertools.product(range(size), repeat=length):
        chance, last = 1.0, start
        for token in text:
            chance *= laws[last][token]
            last = token
        law[text] = chance
    return law


def p_value(counts, law):
    """The probability that so many deviations or more are seen if the counts are of this law: a chi-square test in
    which outcomes of fewer than 5 expected counts are put together."""
    from scipy.stats import chi2

    total = sum(counts.values())
    assert all(law[outcome] > 0 for outcome in counts), "something was written that can't be"
    expected = {outcome: total * chance for outcome, chance in law.items()}
    rare = [outcome for outcome in expected if expected[outcome] < 5]
    groups = [([outcome], expected[outcome]) for outcome in expected if expected[outcome] >= 5]
    rest = sum(expected[outcome] for outcome in rare)
    if rest > 0:
        groups.append((rare, rest))
    statistic = sum((sum(counts[o] for o in outcomes) - amount) ** 2 / amount for outcomes, amount in groups if amount)
    return float(chi2.sf(statistic, len(groups) - 1))


def assert_exact(lm, method, runs, *, draft=None, length=3, **sampling):
    """Runs a method many times and compares its first tokens with the exact law; returns the target passes a run."""
    law = exact_probs(lm, 1, length, Sampling(**sampling))
    counts, passes = Counter(), 0
    for first in range(0, runs, AT_A_TIME):
        handles = [
            lm.submit([1], method=method, draft=draft, seed=seed, max_tokens=length, ignore_eos=True, **sampling)
            for seed in range(first, min(first + AT_A_TIME, runs))
        ]
        results = [handle.result() for handle in handles]
        counts.update(tuple(result.tokens) for result in results)
        passes += sum(result.ledger.target_passes for result in results)
    found = p_value(counts, law)
    assert found > FALSE_ALARM, f"{method}: p = {found:.2g}"
    return passes / runs
