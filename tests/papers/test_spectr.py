"""SpecTr (Sun et al. 2023): the properties of its specification. K-SEQ and the optimum: tests/drafts."""

from __future__ import annotations

import pytest
from papers.distributions import assert_exact, markov_lm

from outlay.decode.draft.specinfer import SpecInfer
from outlay.decode.draft.spectr import SpecTr
from outlay.errors import UsageError
from outlay.testing import PROMPTS, tiny_lm, tiny_model

SHAPES = [SpecTr(drafts=3, depth=2), SpecTr(drafts=4, depth=3, rho="k"), SpecTr(drafts=2, depth=3, rho=1.5)]


@pytest.fixture(scope="module")
def chains():
    return markov_lm(4, 3), markov_lm(4, 4).model


@pytest.mark.parametrize("method", SHAPES, ids=lambda method: method.label)
@pytest.mark.parametrize("runs", [400, pytest.param(100_000, marks=pytest.mark.slow)])
def test_its_first_three_tokens_have_the_targets_distribution(chains, method, runs):
    lm, draft = chains
    assert_exact(lm, method, runs, draft=draft, temperature=1.0)


def test_drafts_that_are_equal_have_no_better_place_than_others():
    """Side by side, as they stand in the tree, they would be favoured, and most where five are of two tokens."""
    lm, draft = markov_lm(2, 12), markov_lm(2, 3).model
    assert_exact(lm, SpecTr(drafts=5, depth=1), 800, draft=draft, temperature=1.0)


@pytest.mark.slow
def test_three_drafts_that_are_equal_have_no_better_place_than_others(chains):
    """Where fewer are equal, it takes 20,000 runs to see it (p = 2e-5)."""
    lm, draft = chains
    assert_exact(lm, SHAPES[0], 20_000, draft=draft, temperature=1.0)


@pytest.mark.parametrize("runs", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_temperature_and_truncation_are_those_of_the_target(chains, runs):
    lm, draft = chains
    assert_exact(lm, SHAPES[0], runs, draft=draft, temperature=0.6)
    assert_exact(lm, SHAPES[0], runs, draft=draft, temperature=1.0, top_p=0.8)


def test_at_temperature_zero_it_writes_what_greedy_writes():
    expected = [tiny_lm().generate(prompt, max_tokens=30, ignore_eos=True).tokens for prompt in PROMPTS]
    for method in SHAPES:
        lm = tiny_lm()
        handles = [lm.submit(p, method=method, draft=tiny_model(7), max_tokens=30, ignore_eos=True) for p in PROMPTS]
        assert [handle.result().tokens for handle in handles] == expected


def test_more_drafts_take_fewer_passes(chains):
    lm, draft = chains
    passes = []
    for drafts in (1, 2, 4, 8):
        method = SpecTr(drafts=drafts, depth=3)
        handles = [
            lm.submit([1], method=method, draft=draft, temperature=1.0, max_tokens=60, seed=seed) for seed in range(40)
        ]
        passes.append(sum(handle.result().ledger.target_passes for handle in handles))
    assert passes == sorted(passes, reverse=True)
    assert passes[0] / passes[2] > 1.12


def test_all_drafts_that_agree_with_the_text_stay_candidates(chains):
    """Not only the first that was taken: with one, siblings at the second level would be too few to gain from."""
    lm, draft = chains
    wide = [
        lm.generate([1], method=SpecTr(6, 3), draft=draft, temperature=1.0, max_tokens=90, seed=s) for s in range(6)
    ]
    chain = [
        lm.generate([1], method=SpecTr(1, 3), draft=draft, temperature=1.0, max_tokens=90, seed=s) for s in range(6)
    ]

    def second(results):
        tried = sum(result.ledger.extras["verified_2"] for result in results)
        return sum(result.ledger.extras["accepted_2"] for result in results) / tried

    assert second(wide) > second(chain)


@pytest.mark.parametrize("runs", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_specinfer_is_exact_too(chains, runs):
    lm, draft = chains
    assert_exact(lm, SpecInfer(branching=(3, 2)), runs, draft=draft, temperature=1.0)
    assert_exact(lm, SpecInfer(branching=(2, 2, 1)), runs, draft=draft, temperature=0.6)


@pytest.mark.parametrize(
    ("options", "match"), [({"drafts": 0}, "drafts"), ({"depth": 0}, "depth"), ({"rho": 9.0}, "rho from 1 to 4")]
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(UsageError, match=match):
        SpecTr(**options)
