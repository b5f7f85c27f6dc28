"""Rejection of whole texts: what is returned is distributed as the model's texts that satisfy the constraint."""

from __future__ import annotations

from collections import Counter

import pytest
from papers.distributions import FALSE_ALARM, p_value
from papers.test_awrs import greedy_checker, language, several

from outlay import UsageError
from outlay.constrain import Predicate
from outlay.rewards.functions import FunctionScorer


def test_the_first_valid_text_is_distributed_as_the_posterior_by_chi_square():
    lm, texts = language()
    found = several(lm, greedy_checker(texts), "rejection:draws=200", 300, max_tokens=6)
    total = sum(texts.values())
    counts = Counter(result.text for result in found)
    assert p_value(counts, {text: chance / total for text, chance in texts.items()}) > FALSE_ALARM
    assert all(result.facts["valid"] for result in found)
    share = sum(result.facts["accepted"] for result in found) / sum(result.facts["drawn"] for result in found)
    assert share == pytest.approx(total, rel=0.4)  # rounds end at the first accepted text, which favours it
    assert all(result.ledger.checks == result.facts["drawn"] for result in found)


def test_the_best_valid_text_is_returned_by_probability_or_reward_and_none_is_said():
    lm, texts = language()
    best = several(lm, greedy_checker(texts), "rejection:draws=64,by=logprob", 1, max_tokens=6)[0]
    assert best.text == best.alternatives[0].text
    assert [each.score for each in best.alternatives] == sorted(
        (each.score for each in best.alternatives), reverse=True
    )
    by_length = FunctionScorer(lambda prompt, given: [len(text) / 10 for text in given])
    longest = several(lm, greedy_checker(texts), "rejection:draws=64,by=score", 1, max_tokens=6, scorer=by_length)[0]
    assert len(longest.text) == max(len(each.text) for each in longest.alternatives)
    none = several(lm, Predicate(lambda data: False), "rejection:draws=9", 1, max_tokens=3)[0]
    assert (none.finish_reason, none.facts["valid"]) == ("no_valid_output", False)
    assert (none.facts["accepted"], none.facts["drawn"]) == (0, 9)


def test_it_is_refused_at_temperature_zero():
    lm, _ = language()
    with pytest.raises(UsageError, match="temperature above 0"):
        several(lm, Predicate(lambda data: True), "rejection", 1, temperature=0.0)
