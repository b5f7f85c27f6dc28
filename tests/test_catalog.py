"""Names and options of methods as users write them."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import ClassVar, Literal

import pytest

from outlay import About, Beam, BestOf, Budget, Greedy, Ledger, UsageError, catalog, cli
from outlay.about import Entry
from outlay.budget import UNITS


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
class Zip(Entry):
    """Squeezes bytes."""

    level: int = 6
    """How hard to try."""

    about: ClassVar[About] = About(
        name="zip", summary="fewer bytes", paper="", family="codec", spends="time", saves="bytes", exact=False,
        task="codec", command="outlay codec pack FILE", counts={"zip_symbols": "symbols", "zip_bytes": "bytes"},
    )  # fmt: skip


@pytest.fixture
def listed(monkeypatch):
    """The catalogue with `Zip` in it, from another package."""
    entry = type("Point", (), {"name": "zip", "value": "zip:Zip", "dist": None, "load": lambda self: Zip})()
    monkeypatch.setattr(catalog, "entry_points", lambda group: [entry] if group == catalog.ENTRY_POINTS else [])
    for cached in (catalog.entries, catalog.methods):
        cached.cache_clear()
    yield Zip
    for cached in (catalog.entries, catalog.methods):
        cached.cache_clear()


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


def test_an_entry_of_another_task_is_listed_and_not_run_by_the_engine(listed, capsys):
    assert catalog.find("zip") is Zip
    assert "zip" not in catalog.methods()
    assert catalog.make("zip:level=3") == Zip(3)
    assert catalog.make("zip:level=3").label == "zip:level=3"
    assert cli.main(["methods"]) == 0
    assert "zip" in capsys.readouterr().out
    assert cli.main(["methods", "zip"]) == 0
    page = capsys.readouterr().out
    assert "zip_symbols (symbols)" in page
    assert page.rstrip().endswith("outlay codec pack FILE")


@pytest.mark.parametrize("text", ["zip", "zip:level=3", "zip:nothing=3"])
def test_run_names_the_command_of_an_entry_that_decodes_no_tokens(listed, capsys, text):
    assert cli.main(["run", "Hello", "--method", text]) == 2
    expected = "outlay: 'zip' doesn't decode tokens, its task is codec; run it with: outlay codec pack FILE\n"
    assert capsys.readouterr().err == expected


def test_a_budget_caps_what_a_method_counts():
    budget = Budget(zip_symbols=100, flops=10)
    spent = Ledger(flops=4, extras={"zip_symbols": 60})
    assert budget.left(spent, "zip_symbols") == 40
    assert budget.first_over(spent, Ledger(extras={"zip_symbols": 40})) == ""
    assert budget.first_over(spent, Ledger(extras={"zip_symbols": 41})) == "zip_symbols"
    assert budget.first_over(Ledger(), Ledger(flops=10)) == ""
    assert Budget.parse("zip_symbols=100,flops=10") == budget


def test_a_cap_that_a_method_would_never_meet_is_refused():
    Budget(zip_symbols=1, seconds=2).check("zip", Zip.about.counts)
    with pytest.raises(UsageError, match="greedy doesn't count zip_symbols"):
        Budget(zip_symbols=1).check("greedy", Greedy.about.counts)


def test_counts_are_shown_with_their_units():
    assert UNITS["zip_symbols"] == "symbols"
    table = Ledger(extras={"zip_symbols": 1200, "zip_bytes": 5e6}).table()
    assert "1,200 symbols" in table
    assert "5 MB" in table


@pytest.mark.parametrize("counts", [{"flops": "FLOP"}, {"zip_symbols": "bits"}])
def test_a_count_has_one_meaning(counts):
    with pytest.raises(ValueError, match="already counted"):
        About("x", "", "", "", "", "", counts=counts)


def test_every_method_has_an_entry_that_says_what_it_is():
    for name, method in catalog.entries().items():
        about = method.about
        assert about.name == name
        assert about.summary
        assert about.spends
        assert about.saves
        assert about.family
        assert method.__doc__
        assert about.task == "text" or about.command.startswith("outlay ")


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
