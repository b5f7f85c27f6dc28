"""Acceptance rules: the token that each returns is distributed as the target's, by enumeration of all draws."""

from __future__ import annotations

import itertools

import pytest
import torch
from papers.distributions import random_probs

from outlay.decode.draft.ppd import typical_tokens
from outlay.decode.draft.rsd import reject_without_replacement
from outlay.decode.draft.specinfer import reject_with_replacement
from outlay.decode.draft.spectr import kseq, kseq_acceptance, kseq_residual, kseq_rho
from outlay.speculation.rounds import sample_and_match


def probs_without_replacement(q, p, k):
    """The distribution of what `reject_without_replacement` returns over k tokens drawn from p, enumerated."""
    out = torch.zeros_like(q)

    def step(q, p, left, mass):
        if left == 0 or float(p.sum()) <= 0:
            out.add_(mass * q)
            return
        rest = (q - p).clamp(min=0)
        total = float(rest.sum())
        for token in range(len(p)):
            if p[token] <= 0:
                continue
            accept = min(1.0, float(q[token] / p[token]))
            out[token] += mass * p[token] * accept
            if accept < 1 and total > 0:
                after = p.clone()
                after[token] = 0
                after = after / after.sum() if float(after.sum()) > 0 else after
                step(rest / total, after, left - 1, mass * float(p[token]) * (1 - accept))

    step(q.clone(), p.clone(), k, 1.0)
    return out


def probs_with_replacement(q, p, k):
    out, rest, missed = torch.zeros_like(q), q.clone(), 1.0
    for _ in range(k):
        taken = torch.minimum(p, rest)
        out += missed * taken
        missed *= 1 - float(taken.sum())
        rest = (rest - p).clamp(min=0)
        rest /= rest.sum()
    return out + missed * rest


@pytest.mark.parametrize("size", [2, 3, 5, 6])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_recursive_rejection_without_replacement_gives_the_targets_distribution(size, k):
    for seed in range(8):
        q, p = random_probs(size, seed), random_probs(size, 100 + seed)
        assert torch.allclose(probs_without_replacement(q, p, min(k, size)), q, atol=1e-12, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_recursive_rejection_with_replacement_gives_the_targets_distribution(k):
    for seed in range(8):
        q, p = random_probs(5, seed), random_probs(5, 100 + seed)
        assert torch.allclose(probs_with_replacement(q, p, k), q, atol=1e-12, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_kseq_gives_the_targets_distribution(k):
    for seed in range(8):
        q, p = random_probs(8, seed), random_probs(8, 100 + seed)
        for rho in (kseq_rho(p, q, k), (1 + k) / 2 + 0.5, float(k)):
            rho = max(rho, kseq_rho(p, q, k))
            accepted = kseq_acceptance(p, q, k, rho)
            beta = float(torch.minimum(p, q / rho).sum())
            law = torch.minimum(p, q / rho) * accepted / beta + (1 - accepted) * kseq_residual(p, q, k, rho)
            assert torch.allclose(law, q, atol=1e-12, rtol=0)


CASES = {
    "without replacement": (reject_without_replacement, False),
    "with replacement": (reject_with_replacement, True),
    "kseq": (kseq, True),
    "match": (sample_and_match, True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("runs", [2000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_what_a_rule_returns_has_the_targets_distribution(case, k, runs):
    """The functions themselves, over many draws: a chi-square test with a false-alarm rate of 1e-4."""
    from scipy.stats import chisquare

    verify, repeated = CASES[case]
    q, p = random_probs(4, 3).float(), random_probs(4, 7).float()
    generator = torch.Generator().manual_seed(5)
    counts = torch.zeros(4)
    drafts = torch.multinomial(p.expand(runs, -1), k, replacement=repeated, generator=generator)
    for drafted in drafts.tolist():
        counts[verify(q, p, drafted, generator)] += 1
    assert chisquare(counts.numpy(), (q / q.sum()).numpy() * runs).pvalue > 1e-4


def test_a_returned_token_that_was_drafted_was_accepted():
    """The residual distribution gives no drafted token: where the returned one was drafted, it was accepted."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(50):
        q, p = random_probs(6, seed).float(), random_probs(6, 500 + seed).float()
        drafted = torch.multinomial(p, 3, generator=generator).tolist()
        rest = q.double()
        law = p.double()
        for token in drafted:
            rest = (rest - law).clamp(min=0)
            if float(rest.sum()) == 0:
                break
            rest = rest / rest.sum()
            law[token] = 0
            law = law / law.sum()
        rejected = [token for token in drafted if q[token] < p[token]]
        assert all(float(rest[token]) == 0 for token in rejected[:1])


def test_a_draft_with_the_targets_own_distribution_is_always_accepted():
    q = random_probs(6, 1).float()
    for verify in (reject_without_replacement, reject_with_replacement, kseq):
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            drafted = torch.multinomial(q, 1, generator=generator).tolist()
            assert verify(q, q.clone(), drafted, generator) == drafted[0]


def test_at_a_distribution_of_one_token_every_rule_returns_it():
    q = torch.zeros(5)
    q[3] = 1.0
    p = random_probs(5, 2).float()
    for verify, drafted in itertools.product(
        (reject_without_replacement, reject_with_replacement, kseq), ([0, 1], [3, 0], [1, 3])
    ):
        assert verify(q, p, drafted, torch.Generator().manual_seed(1)) == 3


def test_rules_leave_their_inputs_as_they_are():
    q, p = random_probs(5, 1).float(), random_probs(5, 2).float()
    before = q.clone(), p.clone()
    for verify in (reject_without_replacement, reject_with_replacement, kseq):
        verify(q, p, [0, 1, 2], torch.Generator().manual_seed(3))
    assert torch.equal(q, before[0])
    assert torch.equal(p, before[1])


def test_typical_acceptance_accepts_what_is_likely_enough():
    q = torch.tensor([0.5, 0.3, 0.15, 0.05])
    threshold = min(0.09, 0.3 * float(torch.exp(-torch.special.entr(q).sum())))
    assert typical_tokens(q, 0.09, 0.3).tolist() == [float(chance) > threshold for chance in q]
