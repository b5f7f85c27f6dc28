"""Python's own parser as a constraint."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache

from outlay.constrain.constraint import Constraint, State
from outlay.constrain.texts import Predicate
from outlay.constrain.vocabulary import Vocabulary

INCOMPLETE = 0x4000  # PyCF_ALLOW_INCOMPLETE_INPUT, by which `codeop` asks whether more lines could follow


@dataclass(frozen=True)
class PythonSyntax(Constraint):
    """Python that parses, by the running interpreter's grammar. Lines are checked when they end."""

    def begin(self, vocabulary: Vocabulary) -> State:
        return Predicate(_parses, _may_go_on).begin(vocabulary)

    def check(self, text: str) -> bool:
        return _parses(text.encode())


def _parses(data: bytes) -> bool:
    try:
        ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return bool(data.strip())


def _may_go_on(data: bytes) -> bool:
    """Tells whether the whole lines of a text can begin a program; its last line is not looked at."""
    return _lines_may_begin(data[: data.rfind(b"\n") + 1])


@lru_cache(maxsize=1024)  # the lines stay the same for all tokens of a vocabulary
def _lines_may_begin(lines: bytes) -> bool:
    try:
        compile(lines, "<text>", "exec", INCOMPLETE | ast.PyCF_ONLY_AST, dont_inherit=True)
    except SyntaxError as error:
        return "incomplete input" in str(error)
    except (ValueError, RecursionError, MemoryError):
        return False
    return True
