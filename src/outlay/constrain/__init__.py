"""Constraints on a text: JSON, JSON Schema, regular expressions, grammars, choices, predicates and conjunctions."""

from outlay.constrain.constraint import Compiled, Constraint, State
from outlay.constrain.grammars import Grammar, Json, JsonSchema, Regex
from outlay.constrain.kinds import constraint_of
from outlay.constrain.parts import After, TokenPaths
from outlay.constrain.python import PythonSyntax
from outlay.constrain.texts import Choice, Predicate

__all__ = [
    "After", "Choice", "Compiled", "Constraint", "Grammar", "Json", "JsonSchema", "Predicate", "PythonSyntax", "Regex",
    "State", "TokenPaths", "constraint_of",
]  # fmt: skip
