"""Probabilities and draws of the native sampler against the definition in float64, and against torch's."""

import math

import pytest
import torch

from outlay import kernels
from outlay.engine.sampling import invert, torch_distribution
from outlay.kernels import TokenDraw, Truncation

OPTIONS = [
    Truncation(0.7),
    Truncation(1.3, top_k=1),
    Truncation(1.0, top_k=50),
    Truncation(1.0, top_k=10_000),
    Truncation(0.8, top_p=0.95),
    Truncation(2.0, top_p=0.5),
    Truncation(1.0, top_p=1e-9),
    Truncation(0.9, min_p=0.02),
    Truncation(1.0, min_p=1.0),
    Truncation(0.8, 100, 0.9, 0.01),
]


def logits_of(rows, vocab, scale, seed=0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def defined(logits, options):
    """The probabilities of logits [vocab] in float64: temperature, top-k, top-p, min-p."""
    scores = logits.double() / options.temperature
    if options.top_k is not None:
        scores = scores.masked_fill(scores < scores.topk(min(options.top_k, len(scores))).values[-1], -math.inf)
    if options.top_p is not None:
        probs, tokens = scores.softmax(0).sort(descending=True, stable=True)
        scores[tokens[probs.cumsum(0) - probs >= options.top_p]] = -math.inf
    probs = scores.softmax(0)
    if options.min_p is not None:
        probs = scores.masked_fill(probs < options.min_p * probs.max(), -math.inf).softmax(0)
    return probs


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("vocab", [1, 17, 256, 1003, 30_000])
def test_probabilities_are_as_defined(options, vocab):
    logits = torch.cat([logits_of(2, vocab, scale) for scale in (0.1, 3.0, 12.0)])
    found = kernels.probs(logits, options)
    expected = torch.stack([defined(row, options) for row in logits])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-30)
    assert (found.double().sum(1) - 1).abs().max() < 1e-5


def test_masked_tokens_have_no_probability():
    logits = logits_of(1, 3000, 2.0)
    logits[0, torch.arange(3000) % 7 != 3] = -math.inf
    for options in OPTIONS:
        found = kernels.probs(logits, options)
        assert not found[0, torch.arange(3000) % 7 != 3].any()
        torch.testing.assert_close(found[0].double(), defined(logits[0], options), rtol=1e-5, atol=1e-30)


def test_ties_are_kept_by_top_k_and_broken_by_top_p_towards_the_lower_token():
    logits = torch.zeros(1, 1000)
    logits[0, [700, 20, 300]] = 1.0
    assert kernels.probs(logits, Truncation(1.0, top_k=2)).nonzero()[:, 1].tolist() == [20, 300, 700]
    share = math.e / (3 * math.e + 997)
    assert kernels.probs(logits, Truncation(1.0, top_p=1.5 * share)).nonzero()[:, 1].tolist() == [20, 300]
    rest = (1 - 3 * share) / 997
    kept = kernels.probs(logits, Truncation(1.0, top_p=3 * share + 2.5 * rest)).nonzero()[:, 1]
    assert kept.tolist() == [0, 1, 2, 20, 300, 700]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_draw_is_torchs_wherever_its_number_is_not_at_an_edge(options):
    """Both invert the cumulative sum; they differ in the last bits of the probabilities alone."""
    logits = logits_of(4, 5000, 2.5)
    numbers = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).tolist()
    for row in logits:
        probs = torch_distribution(row, options)
        drawn = kernels.draw(row.expand(200, -1), [TokenDraw(options, number) for number in numbers])
        edges = probs.double().cumsum(0) / probs.double().sum()
        for number, token in zip(numbers, drawn, strict=True):
            assert probs[token] > 0
            nearest = (edges - number).abs().min()
            assert token == invert(probs, number) or nearest < 2e-6


def test_evenly_spaced_numbers_give_each_token_its_share():
    logits = logits_of(1, 40, 1.5)
    for options in (Truncation(1.0), Truncation(0.8, top_p=0.9), Truncation(1.0, top_k=7)):
        probs = kernels.probs(logits, options)[0]
        n = 20_000
        drawn = kernels.draw(logits.expand(n, -1), [TokenDraw(options, (i + 0.5) / n) for i in range(n)])
        counts = torch.bincount(torch.tensor(drawn), minlength=40)
        assert (counts - n * probs).abs().max() <= 1.01
    assert drawn == sorted(drawn)


def test_numbers_at_the_ends_give_the_first_and_the_last_token_with_probability():
    logits = logits_of(1, 3000, 4.0)
    logits[0, :5] = logits[0, -5:] = -math.inf
    for options in OPTIONS:
        kept = kernels.probs(logits, options)[0].nonzero()[:, 0]
        draws = [TokenDraw(options, 0.0), TokenDraw(options, math.nextafter(1.0, 0.0))]
        assert kernels.draw(logits.expand(2, -1), draws) == [kept[0], kept[-1]]


def test_the_least_and_the_greatest_temperatures():
    logits = logits_of(1, 3000, 4.0)
    cold, hot = Truncation(1e-30, top_p=0.9), Truncation(1e30, top_p=0.9)
    assert kernels.probs(logits, cold)[0].argmax() == logits.argmax()
    assert kernels.probs(logits, cold)[0].max() == 1
    assert kernels.probs(logits, hot)[0].count_nonzero() == 2700


def test_a_row_has_the_same_bits_beside_others_and_on_any_number_of_threads():
    logits, options = logits_of(9, 2000, 2.0), Truncation(0.8, top_p=0.9)
    draws = [TokenDraw(options, i / 9) for i in range(9)]
    probs, drawn = kernels.probs(logits, options), kernels.draw(logits, draws)
    kernels.set_threads(2)
    assert torch.equal(kernels.probs(logits, options), probs)
    assert kernels.draw(logits, draws) == drawn
    for i, row in enumerate(logits):
        assert torch.equal(kernels.probs(row[None], options)[0], probs[i])
        assert kernels.draw(row[None], draws[i : i + 1]) == drawn[i : i + 1]


def test_no_row_and_rows_without_any_token_left():
    assert kernels.draw(torch.empty(0, 5), []) == []
    nothing = torch.full((1, 700), -math.inf)
    for options in OPTIONS:
        assert not kernels.probs(nothing, options).any()
        assert 0 <= kernels.draw(nothing, [TokenDraw(options, 0.5)])[0] < 700


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="float32"):
        kernels.probs(torch.zeros(2, 5).double(), Truncation(1.0))
    with pytest.raises(ValueError, match="2 draws"):
        kernels.draw(torch.zeros(2, 5), [TokenDraw(Truncation(1.0), 0.5)])
