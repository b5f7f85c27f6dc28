"""Sets of problems made with a seed: the same on every machine, nothing to download.

A module here is a set of problems. It has a `SUMMARY` and `make(count, seed)`, which returns rows as a file of prompts
has them; a larger `count` begins with the same rows.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from outlay.errors import UsageError


def problem_sets() -> dict[str, ModuleType]:
    """Returns the modules of all sets by name."""
    return {
        module.name: importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)
    }


def make(text: str) -> list[dict[str, Any]] | None:
    """Makes a set of problems.

    Args:
        text: `"name"` or `"name:count=50,seed=1"`; by default 100 problems with seed 0.

    Returns:
        A row for each problem, or None where no set has that name.

    Raises:
        UsageError: an option is neither a count nor a seed.
    """
    name, _, written = text.partition(":")
    problems = problem_sets().get(name)
    if problems is None:
        return None
    options: Mapping[str, int] = {"count": 100, "seed": 0} | dict(
        _option(name, part) for part in written.split(",") if part
    )
    rows: list[dict[str, Any]] = problems.make(**options)
    return rows


def _option(name: str, part: str) -> tuple[str, int]:
    option, _, value = part.partition("=")
    if option not in ("count", "seed") or not value.isdecimal() or (option == "count" and int(value) == 0):
        raise UsageError(f"the problems {name!r} take count=N and seed=N, as in {name}:count=50,seed=1, not {part!r}")
    return option, int(value)
