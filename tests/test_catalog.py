"""Names and options of methods as users write them."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import ClassVar, Literal

import pytest

from outlay import Beam, BestOf, Greedy, UsageError, catalog


@dataclass(frozen=True)
class Base(Greedy):
    """A method with documented options."""

    depth: int = 4
    """Tokens of the chain."""

    rho: float | Literal["star", "k"] = "star"
    """The divisor: "star" is the least that is valid,
    "k" the number of candidates.
    """

    names: ClassVar[int] = 3
    """No option."""


@dataclass(frozen=True)
class Derived(Base):
    """Inherits one text and replaces another."""

    depth: int = 2
    """Levels of the tree."""

    shape: tuple[int, ...] = (2, 2, 1)


def test_an_option_is_described_by_the_string_below_its_field():
    depth, rho = catalog.options(Base)
    assert depth == catalog.Option("depth", "a whole number", "4", "Tokens of the chain.")
    assert rho.type == "a number or star or k"
    assert rho.doc == 'The divisor: "star" is the least that is valid, "k" the number of candidates.'


def test_options_are_described_by_the_nearest_class_that_does():
    depth, rho, shape = catalog.options(Derived)
    assert (depth.default, depth.doc) == ("2", "Levels of the tree.")
    assert rho.doc.startswith("The divisor")
    assert (shape.default, shape.type, shape.doc) == ("2x2x1", "numbers with x between them", "")


def test_a_class_without_source_has_options_without_text():
    made = make_dataclass("Made", [("width", int)], bases=(Greedy,), frozen=True)
    assert catalog.options(made) == [catalog.Option("width", "a whole number", None, "")]


def test_a_method_without_options_has_none():
    assert catalog.options(Greedy) == []


def test_every_method_has_an_entry_that_says_what_it_is():
    for name, method in catalog.methods().items():
        about = method.about
        assert about.name == name
        assert about.summary
        assert about.spends
        assert about.saves
        assert about.family
        assert method.__doc__


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("greedy", Greedy()),
        ("beam", Beam()),
        ("beam:width=8", Beam(width=8)),
        ("beam:width=2,length_penalty=0.5,early_stopping=true", Beam(2, 0.5, True)),
        ("beam:early_stopping=never", Beam(early_stopping="never")),
        ("beam:early_stopping=no", Beam(early_stopping=False)),
        ("best_of: n = 3", BestOf(3)),
    ],
)
def test_a_method_and_its_options_are_read_from_a_name(text, method):
    assert catalog.parse(text) == method
    assert catalog.parse(method.label) == method


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gredy", "no method 'gredy' .did you mean 'greedy'"),
        ("beam:widht=3", "no option 'widht' .did you mean 'width'"),
        ("greedy:k=3", "it has no options"),
        ("beam:width", "needs a value: beam:width=VALUE"),
        ("beam:width=many", "option 'width' of method 'beam' must be a whole number, not 'many'"),
        ("beam:width=0", "width of 1 or more, not 0"),
        ("beam:early_stopping=perhaps", "must be true or false or 'never', not 'perhaps'"),
        ("best_of:n=0", "n of 1 or more"),
    ],
)
def test_a_bad_name_is_refused_in_one_line(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        catalog.parse(text)
    assert "\n" not in str(caught.value)
