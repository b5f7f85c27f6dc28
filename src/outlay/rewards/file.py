"""A scorer's Python file, as its own process reads it, which starts quickly because nothing here imports torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from outlay.errors import ScorerError, UsageError, one_line


@cache
def module_of(path: str) -> ModuleType:
    """Returns the module in a file. Raises `UsageError` unless it can be loaded and has a function `score`."""
    if not Path(path).is_file():
        raise UsageError(f"there is no scorer {path}; give a Python file with a function score(prompt, texts)")
    spec = importlib.util.spec_from_file_location("outlay_scorer", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"the scorer {path} must be a Python file, with a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # somebody else's file
        raise UsageError(f"the scorer {path} can't be loaded: {one_line(error)}") from error
    if not callable(getattr(module, "score", None)):
        raise UsageError(f"the scorer {path} must have a function score(prompt, texts) that returns a reward for each")
    return module


def score_by_file(path: str, prompt: str, texts: Sequence[str]) -> Any:
    """Calls the file's `score(prompt, texts)`. Raises `ScorerError` for whatever it raises."""
    return score_by(module_of(path).score, path, prompt, texts)


def score_by(score: Callable[[str, list[str]], Any], name: str, prompt: str, texts: Sequence[str]) -> Any:
    """Calls a function `score(prompt, texts)`. Raises `ScorerError` for whatever it raises."""
    try:
        return list(score(prompt, list(texts)))
    except Exception as error:  # somebody else's function
        raise ScorerError(f"score() of {name} failed: {one_line(error)}") from error
