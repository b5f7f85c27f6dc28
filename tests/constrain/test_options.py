"""Constraints as the command line gives them."""

from __future__ import annotations

import argparse

import pytest

from outlay.cli.run import _constraint, add_arguments
from outlay.constrain import Choice, JsonSchema, Predicate, Regex


def constraint(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return _constraint(parser.parse_args(["Hello", *words]))


def test_each_option_gives_its_constraint(tmp_path):
    schema, predicate = tmp_path / "schema.json", tmp_path / "even.py"
    schema.write_text('{"type": "integer"}')
    predicate.write_text("def complete_ok(data):\n    return len(data) % 2 == 0\n")
    assert constraint() is None
    assert constraint("--regex", "a,b") == Regex("a,b")
    assert constraint("--choice", "yes", "--choice", "no") == Choice("yes", "no")
    given = constraint("--json-schema", str(schema))
    assert isinstance(given, JsonSchema)
    assert given.schema == {"type": "integer"}
    even = constraint("--constraint", f"python:{predicate}")
    assert isinstance(even, Predicate)
    assert [even.check(text) for text in ("ab", "a")] == [True, False]


def test_two_constraints_at_once_are_refused():
    with pytest.raises(SystemExit):
        constraint("--regex", "a", "--choice", "b")
