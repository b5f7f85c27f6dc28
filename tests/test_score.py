"""Scoring: what is given for each continuation, what it costs, and how much of the logits is held at a time."""

from __future__ import annotations

import pytest
import torch

from outlay.score import ROWS, Score
from outlay.testing import tiny_lm

CONTEXT = [10, 20, 30, 40, 50]


def score(lm, continuations, context=CONTEXT, **options):
    method = Score(continuations, **options)
    result = lm.submit(context, method=method, max_tokens=1).result(60)
    assert result.tokens == []
    return method.likelihoods, result.ledger


def logits_after(lm, tokens):
    """Logits [vocab] after `tokens`, by a run that decodes one token."""
    lm.engine.clear()
    result = lm.submit(tokens, max_tokens=1, logprobs=257).result(60)
    row = torch.empty(257)
    for token, logprob in result.logprobs[0].top:
        row[token] = logprob
    return row


@pytest.mark.parametrize(
    "continuations", [[[1]], [[1], [2]], [[1, 2, 3]], [[1, 2, 3], [1, 2, 4, 5], [1], [9, 2], [1, 2, 3]]]
)
def test_a_likelihood_is_the_product_of_the_tokens_probabilities(continuations):
    likelihoods, _ = score(tiny_lm(), continuations)
    lm = tiny_lm()
    for tokens, (logprob, greedy) in zip(continuations, likelihoods, strict=True):
        rows = [logits_after(lm, CONTEXT + tokens[:length]) for length in range(len(tokens))]
        expected = sum(float(row[token]) for row, token in zip(rows, tokens, strict=True))
        assert logprob == pytest.approx(expected, abs=1e-4)
        assert greedy == all(int(row.argmax()) == token for row, token in zip(rows, tokens, strict=True))


def test_the_text_that_greedy_writes_is_greedy_and_no_other_is():
    lm = tiny_lm()
    text = lm.generate(CONTEXT, max_tokens=6, ignore_eos=True).tokens
    other = [*text[:-1], (text[-1] + 1) % 256]
    (whole, part, changed), _ = score(lm, [text, text[:3], other])
    assert (whole.greedy, part.greedy, changed.greedy) == (True, True, False)


def test_what_continuations_and_contexts_share_is_computed_once():
    lm = tiny_lm()
    _, ledger = score(lm, [[1, 2, 3], [1, 2, 4, 5], [1, 9]])
    assert ledger.target_tokens == len(CONTEXT) + len([1, 2, 4])
    _, again = score(lm, [[7]], context=[*CONTEXT[:-1], 99])
    assert again.target_tokens == 1


def test_a_given_beginning_belongs_to_the_context():
    (given,), _ = score(tiny_lm(), [[60, 70, 1, 2]], given=2)
    (plain,), _ = score(tiny_lm(), [[1, 2]], context=[*CONTEXT, 60, 70])
    assert given.logprob == pytest.approx(plain.logprob, abs=1e-5)
    assert given.greedy == plain.greedy


@pytest.mark.parametrize("continuations", [1, 2])
def test_a_long_text_is_scored_a_few_rows_of_logits_at_a_time(continuations, monkeypatch):
    lm = tiny_lm(context=2048)
    worker = lm.engine.worker(lm.model)
    widths = []
    inner = worker._pass
    monkeypatch.setattr(
        worker, "_pass", lambda plan, heads, want: widths.append(len(heads)) or inner(plan, heads, want)
    )
    texts = [[(place * step) % 250 for place in range(700)] for step in (3, 7)][:continuations]
    likelihoods, _ = score(lm, texts)
    assert max(widths) <= ROWS
    assert sum(widths) == 1 + 699 * continuations - (continuations - 1)
    for text, likelihood in zip(texts, likelihoods, strict=True):
        ((alone,), _) = score(tiny_lm(context=2048), [text])
        assert likelihood.logprob == pytest.approx(alone.logprob, rel=1e-5)


def test_it_is_no_method_of_the_catalogue():
    from outlay import catalog

    assert "score" not in catalog.methods()
