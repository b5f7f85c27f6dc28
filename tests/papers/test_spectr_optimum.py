"""Optimal transport of drafted tokens: the optimum by three ways, and how near K-SEQ and the others come."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from papers.distributions import random_probs
from papers.max_flow import optimal_coupling
from scipy.optimize import linprog

from outlay.bench.drafts.rates import optimal_acceptance, recursive_acceptance, single_acceptance
from outlay.decode.draft.spectr import kseq_acceptance, kseq_residual, kseq_rho
from outlay.errors import UsageError

CASES = [(4, 2), (5, 2), (4, 3), (6, 2)]


def pair(size, seed):
    return random_probs(size, seed), random_probs(size, 300 + seed)


def by_linear_program(p, q, k):
    """The optimum as the linear program over sets of candidates."""
    plan = optimal_coupling(p, q, k)
    edges = [(s, token) for s, tokens in enumerate(plan.sets) for token in tokens]
    rows, bounds = [], []
    for s, mass in enumerate(plan.masses):
        rows.append([float(edge[0] == s) for edge in edges])
        bounds.append(mass)
    for token in range(len(q)):
        rows.append([float(edge[1] == token) for edge in edges])
        bounds.append(float(q[token]))
    return -linprog([-1.0] * len(edges), A_ub=rows, b_ub=bounds).fun


@pytest.mark.parametrize(("size", "k"), CASES)
def test_the_optimum_is_the_same_by_linear_program_by_flow_and_in_closed_form(size, k):
    for seed in range(4):
        p, q = pair(size, seed)
        closed = optimal_acceptance(p, q, k)
        assert optimal_coupling(p, q, k).acceptance == pytest.approx(closed, abs=1e-6)
        assert by_linear_program(p, q, k) == pytest.approx(closed, abs=1e-6)


def test_one_candidate_is_accepted_as_often_as_the_distributions_overlap():
    for seed in range(8):
        p, q = pair(7, seed)
        assert optimal_acceptance(p, q, 1) == pytest.approx(single_acceptance(p, q), abs=1e-12)


def test_more_candidates_never_lower_the_optimum():
    for seed in range(8):
        p, q = pair(7, seed)
        found = [optimal_acceptance(p, q, k) for k in range(1, 9)]
        assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(found))


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_kseq_comes_within_its_guarantee_of_the_optimum(k):
    for seed in range(30):
        p, q = pair(9, seed)
        best = optimal_acceptance(p, q, k)
        reached = kseq_acceptance(p, q, k)
        assert (1 - (1 - 1 / k) ** k) * best - 1e-9 <= reached <= best + 1e-9
        assert reached >= (1 - 1 / math.e) * best - 1e-9
        assert recursive_acceptance(p, q, k) <= best + 1e-9


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_rho_is_the_least_that_is_valid(k):
    for seed in range(20):
        p, q = pair(6, seed)
        rho = kseq_rho(p, q, k)
        assert 1 <= rho <= k
        accepted = kseq_acceptance(p, q, k, rho)
        beta = float(torch.minimum(p, q / rho).sum())
        rest = q - torch.minimum(p, q / rho) * accepted / beta
        assert float(rest.min()) >= -1e-12
        assert accepted == pytest.approx(float(torch.minimum(rho * p, q).sum()), abs=1e-6)
        if rho > 1.02:
            lower = 0.99 * rho
            accepted = kseq_acceptance(p, q, k, lower)
            beta = float(torch.minimum(p, q / lower).sum())
            assert float((q - torch.minimum(p, q / lower) * accepted / beta).min()) < 0


def test_rho_is_one_where_there_is_nothing_to_gain():
    p, q = pair(6, 1)
    assert kseq_rho(p, q, 1) == 1
    assert kseq_rho(p, p, 4) == pytest.approx(1, abs=1e-9)
    apart = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.5, 0.5])
    assert kseq_rho(*apart, 4) == 1
    assert kseq_acceptance(*apart, 4) == 0
    assert torch.allclose(kseq_residual(*apart, 4, 1.0).float(), apart[1])


def test_acceptance_falls_as_rho_rises():
    p, q = pair(8, 3)
    star = kseq_rho(p, q, 4)
    found = [kseq_acceptance(p, q, 4, star + step * (4 - star) / 10) for step in range(11)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(found))


def test_samples_of_the_optimal_plan_have_the_targets_distribution_and_are_candidates_as_often_as_it_says():
    from scipy.stats import chisquare

    p, q = pair(4, 5)
    plan = optimal_coupling(p, q, 2)
    generator = torch.Generator().manual_seed(0)
    runs = 20_000
    drafts = torch.multinomial(p.expand(runs, -1), 2, replacement=True, generator=generator).tolist()
    counts, among = torch.zeros(4), 0
    for candidates in drafts:
        token = plan.sample(candidates, generator)
        counts[token] += 1
        among += token in candidates
    assert chisquare(counts.numpy(), q.numpy() * runs).pvalue > 1e-4
    assert among / runs == pytest.approx(plan.acceptance, abs=4 * (0.25 / runs) ** 0.5)


def test_what_is_no_distribution_is_refused():
    p, q = pair(4, 0)
    for bad, match in (
        ((-p, q, 2), "p must be a distribution"),
        ((p, 2 * q, 2), "q must be a distribution"),
        ((p, q, 0), "k must be 1 or more"),
        ((random_probs(5, 1), q, 2), "5 entries and q 4"),
    ):
        with pytest.raises(UsageError, match=match):
            optimal_acceptance(*bad)
    with pytest.raises(UsageError, match="too many for the optimum"):
        optimal_coupling(random_probs(100, 0), random_probs(100, 1), 4)
