"""Scoring: what is given for each continuation, what it costs, and how much of the logits is held at a time."""

from __future__ import annotations

import pytest
import torch

import outlay
from outlay.engine.schedule import PIECES
from outlay.score import Score
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


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_log_probabilities_of_named_tokens_are_those_of_all_logits(dtype, default_path):
    """In the kernels and in torch, beside runs that want the logits themselves or their largest."""
    lm = outlay.load(default_path, dtype=dtype)
    text = lm.model.tokenizer.encode("The Rhine rises in the Swiss Alps and flows north.")
    follow = [text[5:], [*text[5:7], 11, 12]]
    scores = [Score(follow), Score([text[5:]])]
    others = [lm.submit(text[:place], max_tokens=2, logprobs=1) for place in (6, 8)]
    handles = [lm.submit(text[:5], method=each, max_tokens=1) for each in scores] + others
    for handle in handles:
        handle.result(60)
    for tokens, (logprob, greedy) in zip(
        [*follow, follow[0]], scores[0].likelihoods + scores[1].likelihoods, strict=True
    ):
        expected, best = 0.0, []
        for length in range(len(tokens)):
            lm.engine.clear()
            found = lm.generate(
                [*text[:5], *tokens[:length]], max_tokens=1, logprobs=lm.model.decoder.config.vocab_size
            )
            expected += dict(found.logprobs[0].top)[tokens[length]]
            best += found.tokens
        assert logprob == pytest.approx(expected, abs=1e-4)
        assert greedy == (best == tokens)


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
def test_a_long_text_is_scored_in_passes_that_hold_no_logits(continuations, monkeypatch):
    lm = tiny_lm(context=2048)
    worker = lm.engine.worker(lm.model)
    widths, outputs = [], []
    inner = worker._pass

    def watched(plan, heads, want):
        widths.append(len(heads))
        outputs.append(inner(plan, heads, want))
        return outputs[-1]

    monkeypatch.setattr(worker, "_pass", watched)
    texts = [[(place * step) % 250 for place in range(700)] for step in (3, 7)][:continuations]
    likelihoods, _ = score(lm, texts)
    assert max(widths) <= PIECES.alone
    assert all(output.logits is None for output in outputs)
    assert sum(widths) == 1 + 699 * continuations - (continuations - 1)
    for text, likelihood in zip(texts, likelihoods, strict=True):
        ((alone,), _) = score(tiny_lm(context=2048), [text])
        assert likelihood.logprob == pytest.approx(alone.logprob, rel=1e-5)


def test_it_is_no_method_of_the_catalogue():
    from outlay import catalog

    assert "score" not in catalog.methods()
