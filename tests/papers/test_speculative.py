"""Speculative decoding with a chain, prompt lookup, and drafts of any kind under any verifier."""

from __future__ import annotations

import pytest
from papers.distributions import assert_exact, markov_lm

from outlay.decode.draft.lookup import Lookup
from outlay.decode.draft.specinfer import Speculative
from outlay.errors import UsageError
from outlay.testing import PROMPTS, tiny_lm, tiny_model

REPEATING = "one two three one two three one two three one two"


@pytest.fixture(scope="module")
def chains():
    return markov_lm(4, 5), markov_lm(4, 6).model


@pytest.mark.parametrize("runs", [400, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sampling", [{"temperature": 1.0}, {"temperature": 0.6, "top_p": 0.9}])
def test_a_chain_has_the_targets_distribution(chains, runs, sampling):
    lm, draft = chains
    assert_exact(lm, Speculative(depth=2), runs, draft=draft, **sampling)


def test_a_model_that_drafts_for_itself_is_always_right(chains):
    lm, _ = chains
    result = lm.generate([1], method=Speculative(3), draft=lm.model, temperature=1.0, max_tokens=40, ignore_eos=True)
    assert result.ledger.target_passes == 10
    assert result.ledger.accepted == result.ledger.drafted


@pytest.fixture(scope="module")
def table_cache(tmp_path_factory):
    """A cache in which the table of the tiny model is made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("method", ["speculative", "rsd", "rsd:variant=s", "spectr", "specinfer"])
@pytest.mark.parametrize("draft", ["lookup", "table", "self:int4", "self:skip=0"])
def test_any_draft_serves_any_verifier(method, draft, table_cache, monkeypatch):
    monkeypatch.setenv("OUTLAY_CACHE", str(table_cache))
    expected = [tiny_lm().generate(prompt, max_tokens=24, ignore_eos=True).tokens for prompt in PROMPTS]
    lm = tiny_lm()
    results = lm.generate_batch(PROMPTS, method=method, draft=draft, max_tokens=24, ignore_eos=True)
    assert [result.tokens for result in results] == expected
    warm = {"max_tokens": 24, "ignore_eos": True, "temperature": 0.8, "seed": 5}
    drawn = lm.generate(PROMPTS[1], method=method, draft=draft, **warm)
    if draft in ("lookup", "table"):  # chosen, not drawn: the target's own draws decide
        assert drawn.tokens == lm.generate(PROMPTS[1], method="sample", **warm).tokens


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.7}, {"temperature": 1.0, "top_p": 0.9}])
def test_lookup_writes_what_greedy_or_sample_write_with_the_same_seed(sampling):
    lm = tiny_lm()
    plain = lm.generate_batch(PROMPTS, max_tokens=40, ignore_eos=True, seed=3, **sampling)
    looked = lm.generate_batch(PROMPTS, method="lookup", max_tokens=40, ignore_eos=True, seed=3, **sampling)
    assert [result.tokens for result in looked] == [result.tokens for result in plain]


def test_lookup_takes_fewer_passes_where_the_text_repeats():
    lm = tiny_lm()
    result = lm.generate(REPEATING, method="lookup", max_tokens=100, ignore_eos=True)
    assert result.ledger.drafted > 0
    assert result.ledger.accepted <= result.ledger.drafted
    assert result.ledger.draft_passes == 0
    assert result.ledger.target_passes == 100 - result.ledger.accepted


def test_acceptance_is_counted_by_depth(chains):
    lm, draft = chains
    ledger = lm.generate([1], method=Speculative(3), draft=draft, temperature=1.0, max_tokens=80).ledger
    extras = ledger.extras
    assert extras["accepted_1"] + extras["accepted_2"] + extras.get("accepted_3", 0) == ledger.accepted
    assert (
        extras["verified_1"] >= extras["verified_2"] == extras["accepted_1"]
        or extras["verified_2"] <= extras["accepted_1"]
    )
    assert extras["verified_1"] <= ledger.rounds
    assert "accepted by depth" in ledger.table()


def test_penalties_and_biases_count_for_drafted_tokens_too():
    """The order of the logits' changes holds along a drafted path, so the text is that of plain decoding."""
    options = {"max_tokens": 40, "ignore_eos": True, "repetition_penalty": 1.3, "logit_bias": {65: 2.0}}
    lm = tiny_lm()
    for prompt in PROMPTS[:3]:
        plain = lm.generate(prompt, **options)
        assert lm.generate(prompt, method="lookup", **options).tokens == plain.tokens
        assert lm.generate(prompt, method="speculative", draft=tiny_model(0), **options).tokens == plain.tokens


def test_log_probabilities_are_those_of_plain_decoding():
    lm = tiny_lm()
    plain = lm.generate(REPEATING, max_tokens=30, ignore_eos=True, logprobs=2)
    drafted = lm.generate(REPEATING, method="lookup", max_tokens=30, ignore_eos=True, logprobs=2)
    for one, other in zip(plain.logprobs, drafted.logprobs, strict=True):
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_an_end_token_or_a_stop_string_in_a_drafted_path_ends_the_text():
    lm = tiny_lm()
    for options in ({"stop": [chr(1)]}, {"stop": ["e", "o"]}, {}):
        plain = lm.generate(REPEATING, max_tokens=200, **options)
        drafted = lm.generate(REPEATING, method="lookup", max_tokens=200, **options)
        itself = lm.generate(REPEATING, method="speculative:depth=6", draft=lm.model, max_tokens=200, **options)
        for other in (drafted, itself):
            assert (other.tokens, other.text, other.finish_reason) == (plain.tokens, plain.text, plain.finish_reason)


def test_a_budget_of_positions_makes_trees_smaller_before_it_ends_the_run():
    lm = tiny_lm(prefix_cache=False)
    whole = lm.generate(REPEATING, method="lookup", max_tokens=30, ignore_eos=True)
    from outlay import Budget

    cap = whole.ledger.target_tokens - 3
    capped = lm.generate(REPEATING, method="lookup", max_tokens=30, ignore_eos=True, budget=Budget(target_tokens=cap))
    assert capped.ledger.target_tokens <= cap
    assert len(capped.tokens) > 20


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Speculative(0), "depth"),
        (lambda: Lookup(tokens=0), "tokens"),
        (lambda: Lookup(longest=1, shortest=2), "longest match, 1, is below its shortest, 2"),
    ],
)
def test_options_out_of_range_are_refused(make, match):
    with pytest.raises(UsageError, match=match):
        make()


@pytest.mark.parametrize("draft", ["self:", "self:int5", "self:skip=9", "self:skip=0-1", "self:skip=x"])
def test_a_layer_skip_draft_that_can_t_be_is_refused(draft):
    with pytest.raises(UsageError, match=r"self:|skip takes layers"):
        tiny_lm().generate("Hi", method="speculative", draft=draft)
