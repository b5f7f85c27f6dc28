"""RSD (Jeon et al. 2024): the properties of its specification, and its headline where siblings repeat."""

from __future__ import annotations

import pytest
import torch
from papers.distributions import assert_exact, markov_lm, random_probs

from outlay.bench.drafts.rates import recursive_acceptance, single_acceptance
from outlay.decode.draft.rsd import RSD, reject_without_replacement
from outlay.errors import UsageError
from outlay.testing import PROMPTS, markov_model, tiny_lm, tiny_model

SHAPES = [
    RSD(branching=(2, 1, 1)), RSD(branching=(2, 2)), RSD("s", width=3, depth=2), RSD("s", width=2, depth=3),
    RSD("s", width=4, depth=3),
]  # fmt: skip


@pytest.fixture(scope="module")
def chains():
    """A target over four tokens, and a draft."""
    return markov_lm(4, 1), markov_lm(4, 2).model


@pytest.mark.parametrize("method", SHAPES, ids=lambda method: method.label)
@pytest.mark.parametrize("runs", [400, pytest.param(100_000, marks=pytest.mark.slow)])
def test_its_first_three_tokens_have_the_targets_distribution(chains, method, runs):
    lm, draft = chains
    assert_exact(lm, method, runs, draft=draft, temperature=1.0)


@pytest.mark.parametrize("sampling", [{"temperature": 0.6}, {"temperature": 1.0, "top_p": 0.8}])
@pytest.mark.parametrize("runs", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_temperature_and_truncation_are_those_of_the_target(chains, sampling, runs):
    lm, draft = chains
    for method in (SHAPES[0], SHAPES[2]):
        assert_exact(lm, method, runs, draft=draft, **sampling)


def test_at_temperature_zero_it_writes_what_greedy_writes():
    expected = [tiny_lm().generate(prompt, max_tokens=30, ignore_eos=True).tokens for prompt in PROMPTS]
    for method in SHAPES:
        for draft in (tiny_model(0), tiny_model(7)):
            lm = tiny_lm()
            handles = [lm.submit(p, method=method, draft=draft, max_tokens=30, ignore_eos=True) for p in PROMPTS]
            assert [handle.result().tokens for handle in handles] == expected


def test_a_draft_with_the_targets_law_is_taken_whole(chains):
    lm, _ = chains
    for method, depth in ((RSD(branching=(1, 1, 1)), 3), (RSD("s", width=2, depth=3), 3)):
        result = lm.generate([1], method=method, draft=lm.model, temperature=1.0, max_tokens=40, ignore_eos=True)
        assert result.ledger.target_passes == 40 / (depth + 1)


def test_one_sibling_is_plain_speculative_sampling():
    """It is taken as often as the laws overlap: 20,000 draws, within four standard errors."""
    q, p = random_probs(5, 1).float(), random_probs(5, 2).float()
    generator = torch.Generator().manual_seed(0)
    drafts = torch.multinomial(p.expand(20_000, -1), 1, generator=generator).tolist()
    taken = sum(reject_without_replacement(q, p, drafted, generator) == drafted[0] for drafted in drafts)
    # A rejected token is never what is returned, so returning it means that it was accepted.
    assert taken / 20_000 == pytest.approx(single_acceptance(p, q), abs=4 * (0.25 / 20_000) ** 0.5)


@pytest.mark.parametrize("nodes", [1, 3, 6])
@pytest.mark.parametrize("runs", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_tree_has_at_most_the_nodes_that_it_may_have(chains, nodes, runs):
    lm, draft = chains
    for variant in ("c", "s"):
        method = RSD(variant, branching=(2, 2, 2), width=3, depth=4, nodes=nodes)
        events = []
        lm.generate([1], method=method, draft=draft, temperature=1.0, max_tokens=30, trace=events.append)
        widths = [len(event["nodes"]) for event in events if event["event"] == "pass" and event["model"] == "target"]
        assert max(widths) <= nodes + 1
        assert method.limits.max_nodes == nodes
    assert_exact(lm, RSD("s", width=3, depth=2, nodes=nodes), runs, draft=draft, temperature=1.0)


def test_siblings_that_don_t_repeat_are_taken_more_often_at_low_temperature():
    """The headline at the scale of a law: four siblings of a peaked law, without and with repetition."""
    gains = []
    for seed in range(12):
        q, p = (random_probs(12, seed + shift, 1.0).pow(1 / 0.3) for shift in (0, 500))
        q, p = (q / q.sum()).float(), (p / p.sum()).float()
        generator = torch.Generator().manual_seed(seed)
        drafts = torch.multinomial(p.expand(400, -1), 4, generator=generator).tolist()
        taken = sum(reject_without_replacement(q, p, drafted, generator) in drafted for drafted in drafts) / 400
        gains.append(taken / max(recursive_acceptance(p, q, 4), 1e-3))
    assert sum(gains) / len(gains) > 1.15


def test_a_missing_draft_and_other_tokens_are_refused_with_a_way_out():
    lm = tiny_lm()
    with pytest.raises(UsageError, match=r"rsd needs a draft.*outlay train draft --model"):
        lm.generate("Hi", method="rsd")
    with pytest.raises(UsageError, match="their vocabularies differ"):
        lm.generate("Hi", method="rsd", draft=markov_model(torch.full((4, 4), 0.25)))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"branching": (0,)}, "branching"),
        ({"branching": ()}, "branching"),
        ({"width": 0}, "width"),
        ({"nodes": 0}, "nodes"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(UsageError, match=match):
        RSD(**options)
