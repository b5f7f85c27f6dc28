"""Tests of a program, and the files in which users have them."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.errors import UsageError

FORMS = (
    "give a Python file with assertions or functions test_*, or JSON with a list of assertions, or with inputs and "
    "outputs as APPS has them"
)
FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Test:
    """A test: code that runs after the program and must not raise, or an input with the output that is wanted."""

    __test__ = False  # it is no class of tests, whatever pytest makes of its name

    code: str | None = None
    input: str = ""
    output: str = ""

    def as_job(self) -> dict[str, str]:
        """Returns it as the process that runs it reads it."""
        return {"input": self.input, "output": self.output} if self.code is None else {"code": self.code}


def read_tests(path: Path) -> tuple[Test, ...]:
    """Returns the tests of a file.

    Args:
        path: A `.py` file: each assertion at its top level is a test, and each function `test_*`, after all else that
            stands there. Or a `.json` file: a list of assertions (MBPP's `test_list`), `{"tests": [...]}` with one, or
            APPS's `{"inputs": [...], "outputs": [...]}`, with `fn_name` where a function is called.

    Raises:
        UsageError: It can't be read, is of another form, or holds no test.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read the tests in {path}: {error}") from error
    try:
        tests = _of_json(json.loads(text)) if path.suffix == ".json" else _of_python(text)
    except (ValueError, KeyError, TypeError, SyntaxError) as error:
        reason = f"line {error.lineno}" if isinstance(error, SyntaxError | json.JSONDecodeError) else "its form"
        raise UsageError(f"the tests in {path} can't be read because of {reason}: {FORMS}") from error
    if not tests:
        raise UsageError(f"there are no tests in {path}: {FORMS}")
    return tuple(tests)


def code_in(text: str) -> str:
    """Returns the code in a model's reply: its first fenced block, else the whole text."""
    fenced = FENCE.search(text)
    return fenced[1] if fenced else text


def of_assertions(assertions: list[str]) -> list[Test]:
    """Returns a test for each assertion. Raises `SyntaxError` for what isn't Python."""
    for assertion in assertions:
        ast.parse(assertion)
    return [Test(code=assertion) for assertion in assertions]


def _of_python(text: str) -> list[Test]:
    parsed = ast.parse(text)
    tests = [part for part in parsed.body if isinstance(part, ast.Assert)]
    setup = "\n".join(ast.unparse(part) for part in parsed.body if not isinstance(part, ast.Assert))
    named = [
        part.name
        for part in parsed.body
        if isinstance(part, ast.FunctionDef) and part.name.startswith("test_") and not part.args.args
    ]
    codes = [ast.unparse(test) for test in tests] + [f"{name}()" for name in named]
    return [Test(code=f"{setup}\n{code}" if setup else code) for code in codes]


def _of_json(found: Any) -> list[Test]:
    if isinstance(found, dict) and "tests" in found:
        found = found["tests"]
    if isinstance(found, list):
        return of_assertions(found)
    pairs = list(zip(found["inputs"], found["outputs"], strict=True))
    if name := found.get("fn_name"):
        return [Test(code=_call(name, given, wanted)) for given, wanted in pairs]
    return [Test(input=_lines(given), output=_lines(wanted)) for given, wanted in pairs]


def _lines(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "\n".join(text)


def _call(name: str, arguments: list[Any], wanted: Any) -> str:
    """Returns code that calls a function, or a method of `Solution`, and compares what it returns.

    As in APPS, a tuple counts as a list, and the wanted value may stand in a list of its own.
    """
    if not name.isidentifier():
        raise ValueError(name)
    right = [wanted, *(wanted[:1] if isinstance(wanted, list) else [])]
    return (
        f"called = {name} if {name!r} in globals() else getattr(Solution(), {name!r})\n"
        f"found = called(*{arguments!r})\n"
        f"assert (list(found) if isinstance(found, tuple) else found) in {right!r}"
    )
