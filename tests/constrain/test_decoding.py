"""Methods under a constraint: they write what it allows, and the same with and without drafts."""

from __future__ import annotations

import json
import re

import pytest

from outlay import About, Method, UsageError
from outlay.constrain import Choice, JsonSchema, Predicate, Regex
from outlay.speculation.rounds import DraftLimits, DraftTree, steered
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
        assert "backtracks" not in results[0].ledger.extras


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


@pytest.mark.parametrize(
    ("method", "runs"),
    [
        *((method, 100) for method in known(("lookup", "rsd", "traversal"))),
        *(pytest.param(method, 1000, marks=pytest.mark.slow) for method in known(("lookup", "auto", *DRAFTED))),
    ],
)
def test_drafts_do_not_change_the_distribution_at_temperature_one(method, runs):
    from collections import Counter

    from scipy.stats import chi2_contingency

    pattern = Regex("x([abc]{2}|b-b)y")  # x and y are forced
    lm = tiny_lm()
    counts = []
    for name in ("sample", method):
        with lm.engine.together():
            handles = [
                lm.submit("Say", constraint=pattern, method=name, temperature=3.0, seed=seed + 1000 * len(counts),
                          max_tokens=8, **given(name))
                for seed in range(runs)
            ]  # fmt: skip
        counts.append(Counter(handle.result().text for handle in handles))
    often = [text for text in counts[0] | counts[1] if counts[0][text] + counts[1][text] >= 10]
    assert len(often) > 3
    assert chi2_contingency([[count[text] for text in often] for count in counts]).pvalue > 1e-4


HARD = Predicate(lambda data: data in (b"ab", b"cde"), lambda data: len(data) <= 3 and not data.strip(b"abcde"))
NO_ONES = JsonSchema(
    {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3, "not": {"contains": {"const": 1}}}
)


@pytest.mark.parametrize("method", known(("greedy", "lookup", "auto", "best_of:n=2", "beam", "speculative", "rsd")))
def test_a_dead_end_is_left_for_the_deepest_choice_and_what_is_returned_is_valid(method):
    options = {"temperature": 1.0} if method == "best_of:n=2" else {}
    result = tiny_lm().generate("Say", constraint=HARD, method=method, max_tokens=20, **options, **given(method))
    assert result.text in ("ab", "cde")
    assert result.finish_reason == "stop"
    assert result.facts["valid"] is True
    assert result.ledger.extras["backtracks"] > 0
    assert result.ledger.tokens_out == len(result.tokens) == len(result.text) + 1


def test_what_only_the_check_knows_is_met_and_greedy_writes_it_with_and_without_drafts():
    assert NO_ONES.checked
    results = [
        tiny_lm().generate("Say", constraint=NO_ONES, method=method, max_tokens=60, **given(method))
        for method in known(("greedy", "lookup", "auto", "speculative"))
    ]
    assert json.loads(results[0].text) in ([2, 2], [2, 2, 2])
    assert {tuple(result.tokens) for result in results} == {tuple(results[0].tokens)}
    assert all(result.facts["valid"] and result.ledger.extras["backtracks"] for result in results)


def test_a_text_that_may_go_back_is_streamed_at_its_end_and_any_other_as_it_comes():
    for constraint, chunks in ((HARD, range(1, 2)), (DATE, range(5, 20))):
        stream = tiny_lm().stream("Say", constraint=constraint, max_tokens=20)
        pieces = list(stream)
        assert "".join(pieces) == stream.result.text
        assert len(pieces) in chunks or constraint is HARD
    handle = tiny_lm().submit("Say", constraint=HARD, max_tokens=20, logprobs=1)
    tokens = [token for chunk in handle.chunks() for token in chunk.tokens]
    assert tokens == handle.result().tokens
    assert len(handle.result().logprobs) == len(tokens)


def test_an_end_that_the_check_refuses_is_closed_alone():
    class Longer(Choice):
        def check(self, text):
            return text == "yesno"

        masks_all = False

    result = tiny_lm().generate("Say", constraint=Longer("yes", "yesno"), max_tokens=9)
    assert (result.text, result.finish_reason, result.facts["valid"]) == ("yesno", "stop", True)
    assert result.ledger.extras.get("backtracks", 0) <= 1
    assert accepts_no_more(result)


def accepts_no_more(result):
    """Whether a run did no work behind its end: its passes are no more than its tokens and its backtracks."""
    return result.ledger.target_passes <= len(result.tokens) * (1 + result.ledger.extras.get("backtracks", 0))


@pytest.mark.parametrize("method", known(("lookup", "auto", "aded", "speculative", "traversal")))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_must_follow_is_drafted_and_costs_no_passes(method, temperature):
    only = Choice("a long text that nothing else can be")
    result = tiny_lm().generate(
        "Say", constraint=only, method=method, max_tokens=60, temperature=temperature, **given(method)
    )
    assert only.check(result.text)
    assert result.ledger.target_passes <= 0.6 * len(result.tokens)
    assert {"forced", "draft"} & set(result.origins)


class Steered(Method):
    """Drafts two chains and keeps, as facts, what the constraint leaves of them."""

    about = About("steered", "", "", "", "", "", takes=("constraint",))

    def decode(self, run):
        tree, tokenizer = DraftTree(), run.model.tokenizer
        for text in ("ab-a", "b"):
            tree.add_chain(tokenizer.encode(text), "made")
        fitted = steered(run, tree, DraftLimits(10, 4))
        run.facts["left"] = [tokenizer.decode(fitted.path_tokens(node)) for node in range(len(fitted))]
        run.commit((yield from run.next_token(run.tip)))


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("[ab]{20}", ["a", "ab", "b"]),
        ("[ab-]{20}", ["a", "ab", "ab-", "ab-a", "b"]),
        ("a[ab]cdef", ["a", "ab", "abc", "abcd"]),
        ("xyz|xyw", ["x", "xy"]),
    ],
)
def test_drafts_that_break_the_constraint_are_cut_and_what_must_follow_is_added(pattern, left):
    result = tiny_lm().generate("Say", constraint=Regex(pattern), method=Steered(), max_tokens=1)
    assert result.facts["left"] == left
