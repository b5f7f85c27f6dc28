"""How lists of methods and budgets are read."""

from __future__ import annotations

import pytest

from outlay.compare.sweep import split_methods, swept, swept_budgets
from outlay.errors import UsageError


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        ("greedy", ["greedy"]),
        ("greedy,beam:width=4,length_penalty=0.8,sample", ["greedy", "beam:width=4,length_penalty=0.8", "sample"]),
        (" greedy , beam : width=4 , length_penalty=1 ", ["greedy", "beam : width=4,length_penalty=1"]),
        ("rsd:draft=org/name:Q4,branching=2x2x1,greedy", ["rsd:draft=org/name:Q4,branching=2x2x1", "greedy"]),
        ("beam,width=2,greedy", ["beam:width=2", "greedy"]),
        ("greedy,,sample,", ["greedy", "sample"]),
    ],
)
def test_a_part_with_an_equals_sign_belongs_to_the_method_before_it(text, methods):
    assert split_methods(text) == methods


@pytest.mark.parametrize("text", ["", " , ", "width=4,beam"])
def test_a_list_without_a_method_is_refused(text):
    with pytest.raises(UsageError):
        split_methods(text)


def test_alternatives_multiply_out_the_last_one_changing_first():
    assert swept("beam:width=2|4,length_penalty=0.8|1") == [
        "beam:width=2,length_penalty=0.8",
        "beam:width=2,length_penalty=1",
        "beam:width=4,length_penalty=0.8",
        "beam:width=4,length_penalty=1",
    ]
    assert swept("rsd:branching=2x2x1|3x2x2") == ["rsd:branching=2x2x1", "rsd:branching=3x2x2"]
    assert swept("greedy") == ["greedy"]


def test_budgets_multiply_out_and_none_takes_a_cap_away():
    assert swept_budgets("target_passes=32|64,seconds=2") == [
        "target_passes=32,seconds=2",
        "target_passes=64,seconds=2",
    ]
    assert swept_budgets("target_passes=32|none") == ["target_passes=32", ""]
    assert swept_budgets("target_passes=32|none,tokens_out=8|none") == [
        "target_passes=32,tokens_out=8", "target_passes=32", "tokens_out=8", "",
    ]  # fmt: skip
