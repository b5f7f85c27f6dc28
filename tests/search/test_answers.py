"""Answers in one form, and votes."""

from __future__ import annotations

import itertools
from typing import ClassVar

import pytest

from outlay import About, Method
from outlay.search import agreement
from outlay.search.agreement import agreed
from outlay.search.answers import answer_of, vote
from outlay.testing import tiny_lm


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so it is \\boxed{0.50}", "1/2"),
        ("\\boxed{\\frac{1}{2}}", "1/2"),
        ("\\boxed{1} or \\boxed{x^{2} + 1}", "x^{2}+1"),
        ("that makes 1,234.0 in all.", "1234"),
        ("007", "7"),
        ("\\boxed{12\\text{ cm}}", "12"),
        ("no idea", None),
    ],
)
def test_answers_are_read_in_one_form(text, answer):
    assert answer_of(text) == answer


def test_a_majority_wins_in_any_order_and_what_cannot_be_read_never_does():
    for order in itertools.permutations(["7", "7", "8", None, None, None]):
        assert vote(order, [1.0] * 6, [0.0] * 6) == "7"
    assert vote([None], [1.0], [0.0]) is None


def test_ties_go_to_the_higher_log_probability_then_to_the_first():
    assert vote(["1", "2"], [1, 1], [-5.0, -3.0]) == "2"
    assert vote(["1", "2"], [1, 1], [-3.0, -3.0]) == "1"


class Agreeing(Method):
    """Has answers compared."""

    about: ClassVar[About] = About("agreeing", "", "", "test", "", "")

    def decode(self, run):
        run.facts["answers"] = yield from agreed(run, ["x^{2}+1", "7", None, "1+x^{2}", "7/2", "7"])


def test_answers_that_math_verify_finds_equal_are_one():
    pytest.importorskip("math_verify")
    found = tiny_lm().generate("x", method=Agreeing(), max_tokens=1).facts["answers"]
    assert found == ["x^{2}+1", "7", None, "x^{2}+1", "7/2", "7"]


def test_without_math_verify_their_form_decides(monkeypatch):
    monkeypatch.setattr(agreement, "find_spec", lambda name: None)
    found = tiny_lm().generate("x", method=Agreeing(), max_tokens=1).facts["answers"]
    assert found == ["x^{2}+1", "7", None, "1+x^{2}", "7/2", "7"]
