"""Constraints by name, as the command line and prompt files give them."""

from __future__ import annotations

import runpy
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from outlay.constrain.constraint import Constraint
from outlay.constrain.grammars import Grammar, Json, JsonSchema, Regex
from outlay.constrain.python import PythonSyntax
from outlay.constrain.texts import Predicate
from outlay.errors import UsageError

NAMES = "json, regex:PATTERN, schema:FILE, grammar:FILE, python:FILE or python_syntax"
ENTRY_POINTS = "outlay.constraints"
"""Other packages add kinds: an entry point names a function of what stands behind `KIND:`, which makes a constraint."""


def constraint_of(given: Any) -> Constraint:
    """Returns what is meant by a constraint, a name (`NAMES`), or a dict, which is a JSON Schema.

    Raises:
        UsageError: For what can't be read.
    """
    if isinstance(given, Constraint):
        return given
    if isinstance(given, dict):
        return JsonSchema(given)
    if not isinstance(given, str):
        raise UsageError(f"a constraint is an object of outlay.constrain, a JSON schema, or {NAMES}, not {given!r}")
    kind, _, rest = given.partition(":")
    if given == "json":
        return Json()
    if given == "python_syntax":
        return PythonSyntax()
    if kind == "regex" and rest:
        return Regex(rest)
    if kind == "schema" and rest:
        return JsonSchema(_text_of(rest))
    if kind == "grammar" and rest:
        return Grammar(_text_of(rest))
    if kind == "python" and rest:
        return _python(rest)
    for entry in entry_points(group=ENTRY_POINTS, name=kind):
        return _of_package(entry, rest)
    others = "".join(f", {entry.name}:..." for entry in entry_points(group=ENTRY_POINTS))
    raise UsageError(f"constraint {given!r} is not known; give {NAMES}{others}")


def _of_package(entry: EntryPoint, rest: str) -> Constraint:
    """Returns a constraint of a kind that another package adds."""
    try:
        make = entry.load()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the constraint kind {entry.name!r} can't be loaded: {error}") from error
    made = make(rest)
    if not isinstance(made, Constraint):
        raise UsageError(f"the constraint kind {entry.name!r} made {made!r}, which is no constraint")
    return made


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} can't be read: {error}") from None


def _python(file: str) -> Constraint:
    """Returns the predicate of a Python file: its `complete_ok`, and its `prefix_ok` if it has one."""
    _text_of(file)
    try:
        names = runpy.run_path(file)
    except Exception as error:  # whatever the file does
        raise UsageError(f"{file} can't be run: {error!r}") from None
    if not callable(names.get("complete_ok")):
        raise UsageError(f"{file} must define complete_ok(data: bytes) -> bool, and may define prefix_ok")
    return Predicate(names["complete_ok"], names.get("prefix_ok"))
