"""Methods under a constraint: they write what it allows, and the same with and without drafts."""

from __future__ import annotations

import re

import pytest

from outlay import UsageError
from outlay.constrain import Choice, JsonSchema, Predicate, Regex
from outlay.testing import tiny_lm, tiny_model

DATE = Regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
DRAFTED = ("speculative", "rsd", "spectr", "traversal", "specinfer")
EXACT = ("greedy", "sample", "lookup", "auto", "aded")


def known(methods):
    from outlay import catalog

    found = []
    for name in methods:
        try:
            catalog.parse(name)
        except UsageError:
            continue
        found.append(name)
    return found


def given(method):
    return {"draft": tiny_model(1)} if method in DRAFTED else {}


@pytest.mark.parametrize("method", known((*EXACT, *DRAFTED)))
@pytest.mark.parametrize("constraint", [DATE, JsonSchema({"enum": ["red", {"a": [1, 2]}]}), Choice("yes", "yesno")])
def test_at_temperature_zero_every_exact_method_writes_the_same_valid_text(method, constraint):
    expected = tiny_lm().generate("Say", max_tokens=40, constraint=constraint, method="greedy")
    result = tiny_lm().generate("Say", max_tokens=40, constraint=constraint, method=method, **given(method))
    assert result.tokens == expected.tokens
    assert result.finish_reason == "stop"
    assert result.facts["valid"] is True
    assert constraint.check(result.text)


@pytest.mark.parametrize("method", known(("sample", "best_of", "beam", *DRAFTED)))
def test_all_texts_are_valid_and_the_same_seed_gives_the_same(method):
    options = {} if method == "beam" else {"temperature": 1.0}
    for seed in range(3):
        results = [
            tiny_lm().generate(
                "Say", max_tokens=40, constraint=DATE, method=method, seed=seed, **options, **given(method)
            )
            for _ in range(2)
        ]
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", results[0].text)
        assert results[0].facts["valid"]
        assert results[0].tokens == results[1].tokens


def test_a_dead_end_and_a_text_that_is_cut_are_never_called_valid():
    dead = Predicate(lambda data: False, lambda data: len(data) < 3)
    for method in known(("greedy", "lookup", "rsd")):
        result = tiny_lm().generate("Say", constraint=dead, method=method, **given(method))
        assert result.finish_reason == "no_valid_output"
        assert result.facts["valid"] is False
    cut = tiny_lm().generate("Say", constraint=DATE, max_tokens=4)
    assert (cut.finish_reason, cut.facts["valid"]) == ("length", False)


def test_an_end_past_the_constraint_is_refused():
    with pytest.raises(UsageError, match="ignore_eos goes past the end"):
        tiny_lm().generate("x", constraint=DATE, ignore_eos=True)


def test_drafts_do_not_change_the_distribution_at_temperature_one():
    from collections import Counter

    from scipy.stats import chisquare

    pattern, runs = Regex("[abc]{2}"), 300
    lm = tiny_lm()
    counts = []
    for method in ("sample", "rsd"):
        with lm.engine.together():
            handles = [
                lm.submit("Say", constraint=pattern, method=method, temperature=3.0, seed=seed + 1000 * len(counts),
                          max_tokens=4, **given(method))
                for seed in range(runs)
            ]  # fmt: skip
        counts.append(Counter(handle.result().text for handle in handles))
    often = [text for text in counts[0] if counts[0][text] >= 8]
    total = [[count[text] for text in often] for count in counts]
    expected = [value * sum(total[1]) / sum(total[0]) for value in total[0]]
    assert chisquare(total[1], expected).pvalue > 1e-4
