"""Resampling draws ancestors in proportion to their weights."""

from __future__ import annotations

import pytest
import torch

from outlay.search.resampling import SCHEMES, effective_sample_size

WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
ROUNDS = 2000
CRITICAL = 21.1  # of chi-square with 3 degrees of freedom, at a false-alarm rate of 1e-4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ancestors_are_drawn_by_weight_by_chi_square(scheme):
    counts = torch.zeros(4, dtype=torch.float64)
    for seed in range(ROUNDS):
        drawn = SCHEMES[scheme](WEIGHTS, 5, torch.Generator().manual_seed(seed))
        assert len(drawn) == 5
        counts += torch.bincount(torch.tensor(drawn), minlength=4)
    expected = WEIGHTS * 5 * ROUNDS
    assert float(((counts - expected) ** 2 / expected).sum()) < CRITICAL


@pytest.mark.parametrize("scheme", ["systematic", "residual"])
def test_low_variance_schemes_give_at_least_the_whole_part_of_n_w(scheme):
    for seed in range(50):
        drawn = SCHEMES[scheme](WEIGHTS, 10, torch.Generator().manual_seed(seed))
        assert torch.bincount(torch.tensor(drawn), minlength=4).tolist() == [1, 2, 3, 4]


def test_all_weight_on_one_makes_all_copies_equal():
    weights = torch.tensor([0.0, 1.0, 0.0])
    for scheme in SCHEMES.values():
        assert scheme(weights, 3, torch.Generator().manual_seed(1)) == [1, 1, 1]


def test_the_effective_sample_size_is_n_for_equal_weights_and_1_for_one():
    assert effective_sample_size(torch.full((8,), 1 / 8)) == pytest.approx(8)
    assert effective_sample_size(torch.tensor([0.0, 1.0])) == 1
