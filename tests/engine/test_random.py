"""Random streams: one for each seed and key, and no two alike."""

from __future__ import annotations

import itertools

from outlay.engine.random import RandomStreams, mix


def test_seeds_share_no_stream_with_each_other():
    """Seeds that follow each other, as those of n samples do, have numbers of their own at every place."""
    keys = [(place, *more) for place in range(64) for more in ((), (0,), (3,))]
    bits = [mix(seed, *key) for seed, key in itertools.product(range(64), keys)]
    assert len(set(bits)) == len(bits)


def test_a_stream_is_that_of_its_seed_and_key():
    draws = [RandomStreams(seed).uniform(place) for seed in range(3) for place in range(3)]
    assert draws == [RandomStreams(seed).uniform(place) for seed in range(3) for place in range(3)]
    assert len(set(draws)) == 9
