"""Reference code of the user: pairs of a prompt and its solution, from Python files or from rows of a benchmark."""

from __future__ import annotations

import ast
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from outlay.errors import UsageError
from outlay.prompts import decode, numbered_lines
from outlay.python_sources import library_files

ROWS = (".jsonl", ".jsonl.gz")
PROMPTS, SOLUTIONS = ("prompt", "complete_prompt"), ("canonical_solution", "answer")


class Reference(NamedTuple):
    """What a model is given, and what a person wrote behind it."""

    prompt: str
    solution: str


def references(files: Sequence[Path]) -> list[Reference]:
    """Reads reference code.

    Args:
        files: Python files, of which every function with a docstring is taken, its docstring being the end of the
            prompt; or JSON lines with "prompt" and "canonical_solution", as HumanEval has them, .gz or not. None:
            Python's standard library.

    Returns:
        The pairs, in the order of the files.

    Raises:
        UsageError: For a file that can't be read or is no such file, and where there is no pair in any of them.
    """
    found: list[Reference] = []
    for path in files:
        if path.name.endswith(ROWS):
            found += rows(path)
        elif path.suffix == ".py":
            found += functions(_text(path), str(path))
        else:
            raise UsageError(f"{path} is neither Python (.py) nor JSON lines (.jsonl, .jsonl.gz)")
    if not files:
        found += _library()
    if not found:
        raise UsageError(
            "there is no function with a docstring in these files; give others, or JSON lines with "
            '"prompt" and "canonical_solution"'
        )
    return found


def rows(path: Path) -> Iterator[Reference]:
    """Yields the pairs of JSON lines. Raises `UsageError` for what can't be read."""
    for number, line in numbered_lines(_text(path)):
        where = f"line {number} of {path}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{where} is not JSON: {error}") from error
        yield Reference(_field(row, PROMPTS, where), _field(row, SOLUTIONS, where))


def functions(source: str, where: str) -> Iterator[Reference]:
    """Yields the functions and methods of a module that have a docstring and something behind it.

    Raises:
        UsageError: Where it is not Python.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{where} is not Python: {error}") from error
    lines = source.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or ast.get_docstring(node) is None:
            continue
        begin = min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1
        docstring, end = node.body[0].end_lineno or 0, node.end_lineno or 0
        if len(node.body) == 1 or node.body[1].lineno <= docstring:  # nothing, or something on the same line
            continue
        indent = lines[node.lineno - 1][: node.col_offset]
        text = [line.removeprefix(indent) for line in lines[begin:end]]
        yield Reference(*("\n".join(part) + "\n" for part in (text[: docstring - begin], text[docstring - begin :])))


def _library() -> Iterator[Reference]:
    for path in library_files():
        try:
            yield from functions(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError, UsageError):  # files in other encodings, and bad ones for tests
            continue


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        return decode(gzip.decompress(content) if path.suffix == ".gz" else content, str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from error


def _field(row: Any, names: Sequence[str], where: str) -> str:
    """Returns the first of some fields that a row has."""
    given = [row[name] for name in names if name in row] if isinstance(row, dict) else []
    if not given or not isinstance(given[0], str) or not given[0].strip():
        raise UsageError(f'{where} must be a JSON object with "prompt" and "canonical_solution", both some text')
    return given[0]
