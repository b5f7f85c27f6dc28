"""Superposed decoding (Shen et al. 2024): the properties of its specification. It is not exact, nor tested to be."""

from __future__ import annotations

import math

import pytest
import torch

from outlay import Budget
from outlay.decode.draft.superposed import Draft, Superposed
from outlay.errors import UsageError
from outlay.speculation.ngrams import NgramTable, tokenizer_fingerprint
from outlay.testing import PROMPTS, tiny_lm


def complete(lm, prompt, method, **options):
    return lm.generate(prompt, method=method, max_tokens=10, ignore_eos=True, **options)


def test_one_draft_without_n_grams_is_greedy_at_any_temperature():
    lm = tiny_lm()
    for prompt in PROMPTS:
        plain = lm.generate(prompt, max_tokens=10, ignore_eos=True).tokens
        for temperature in (0.06, 1.0):
            method = Superposed(k=1, top_n=2, temperature=temperature)
            assert complete(lm, prompt, method).tokens == plain


@pytest.mark.parametrize("k", [1, 3, 5])
def test_passes_and_positions_do_not_depend_on_how_many_drafts_there_are(k):
    lm = tiny_lm(prefix_cache=False)
    result = complete(lm, PROMPTS[0], Superposed(k=k, top_n=2 * k + 2, rescore=False))
    assert result.ledger.target_passes == 10, "the prompt's, and one for each further token"
    assert result.ledger.target_tokens == len(lm.encode(PROMPTS[0])) + 9


def test_ranking_takes_one_more_pass_over_the_drafts_tokens():
    lm = tiny_lm(prefix_cache=False)
    plain = complete(lm, PROMPTS[0], Superposed(rescore=False))
    ranked = complete(lm, PROMPTS[0], Superposed())
    assert ranked.ledger.target_passes == plain.ledger.target_passes + 1
    assert ranked.ledger.target_tokens - plain.ledger.target_tokens <= 3 * 9


def test_drafts_differ_and_are_ranked_by_their_true_probability():
    lm = tiny_lm()
    result = complete(lm, PROMPTS[2], Superposed())
    texts = [tuple(alternative.tokens) for alternative in result.alternatives]
    assert len(set(texts)) == len(texts) == 3
    assert result.tokens == list(texts[0])
    assert result.alternatives[0].text == result.text
    scores = [alternative.score for alternative in result.alternatives]
    assert scores == sorted(scores, reverse=True)
    for tokens, score in zip(texts, scores, strict=True):
        forced = lm.generate([*lm.encode(PROMPTS[2]), *tokens[:-1]], max_tokens=1, logprobs=257, ignore_eos=True)
        assert len(tokens) == 10
        last = dict(forced.logprobs[0].top)[tokens[-1]]
        assert score <= 0
        assert last <= 0


def test_a_one_hot_mixture_is_the_tokens_own_embedding():
    decoder = tiny_lm().model.decoder
    gamma = torch.tensor([0.0, -1e9, -1e9], dtype=torch.float64).softmax(-1).float()
    vectors = decoder.embeddings(torch.tensor([5, 6, 7]))
    assert torch.equal((gamma[:, None] * vectors).sum(0), vectors[0])


def test_the_first_token_of_the_best_draft_is_the_most_probable_without_n_grams():
    lm = tiny_lm()
    for prompt in PROMPTS:
        greedy = lm.generate(prompt, max_tokens=1, ignore_eos=True).tokens[0]
        drafts = complete(lm, prompt, Superposed(rescore=False, length=1)).alternatives
        assert drafts[0].tokens[0] == greedy


def test_scores_mix_log_probabilities_and_n_grams():
    method = Superposed(alpha=0.54)
    found = method.scores([-1.0, -2.0], [0.25, 0.0])
    assert found == [pytest.approx(0.46 * -1 + 0.54 * math.log(0.25)), -math.inf]
    assert method.scores([-1.0, -2.0], [0.0, 0.0]) == [pytest.approx(-0.46 - 200), pytest.approx(-0.92 - 200)]
    assert method.scores([-1.0, -2.0], None) == [-1.0, -2.0]
    backed = Superposed(backoff=1e-6).scores([-1.0], [0.0])
    assert backed == [pytest.approx(-0.46 + 0.54 * math.log(1e-6))]


def test_n_grams_of_the_drafts_own_words_decide_between_drafts(tmp_path):
    """A table that knows one continuation only, however unlikely, makes it the draft."""
    lm = tiny_lm()
    prompt = lm.encode(PROMPTS[0])
    plain = complete(lm, prompt, Superposed(rescore=False, length=1, top_n=9)).alternatives
    wanted = plain[-1].tokens[0]
    table = NgramTable.build(
        [[*prompt[-5:], wanted]], tokenizer_fingerprint(lm.model.tokenizer), lengths=(1, 2, 3, 4, 5)
    )
    table.save(tmp_path / "n.safetensors")
    method = Superposed(rescore=False, length=1, ngram=str(tmp_path / "n.safetensors"))
    assert complete(lm, prompt, method).tokens == [wanted]


def test_a_finished_draft_is_not_extended():
    lm = tiny_lm()
    ended = Draft((1, 256), -0.1, ended=True)
    method = Superposed()
    assert method._best([ended, Draft((1, 2, 3), -0.2)])[1] is ended or ended in method._best([ended])
    result = lm.generate(PROMPTS[3], method="superposed:length=40", max_tokens=40)
    for alternative in result.alternatives:
        assert 256 not in alternative.tokens[:-1]


def test_a_reset_makes_each_draft_a_stream_of_real_tokens():
    lm = tiny_lm(prefix_cache=False)
    result = complete(lm, PROMPTS[1], Superposed(reset_every=4))
    assert len(result.alternatives) == 3
    plain = complete(lm, PROMPTS[1], Superposed())
    assert result.ledger.target_passes == plain.ledger.target_passes
    assert result.ledger.target_tokens > plain.ledger.target_tokens
    assert (
        complete(lm, PROMPTS[1], Superposed(k=1, top_n=2, reset_every=3)).tokens
        == lm.generate(PROMPTS[1], max_tokens=10, ignore_eos=True).tokens
    )


def test_a_budget_ends_it_with_the_best_draft_so_far():
    lm = tiny_lm()
    result = complete(lm, PROMPTS[1], Superposed(), budget=Budget(target_passes=4))
    assert result.finish_reason == "budget"
    assert 1 <= len(result.tokens) <= 5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": 0.0}, "temperature above 0"),
        ({"k": 0}, "k of 1"),
        ({"k": 5}, "top_n of 10 or more"),
        ({"alpha": 2.0}, "alpha"),
        ({"reset_every": 0}, "reset_every"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(UsageError, match=match):
        Superposed(**options)


def test_a_temperature_of_the_request_is_refused():
    with pytest.raises(UsageError, match="has a temperature of its own"):
        tiny_lm().generate("Hi", method="superposed", temperature=0.7)
