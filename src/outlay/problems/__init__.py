"""Sets of problems made with a seed: the same on every machine, nothing to download.

A module here is a set of problems. It has a `SUMMARY` and `make(count, seed)`, which returns rows as a file of prompts
has them; a larger `count` begins with the same rows.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
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
        text: `"name"` or `"name:count=50,seed=1"`; by default 100 problems with seed 0. `arithmetic` takes
            `operations=6-8`, the fewest and the most operations, besides, and `short_answers` `pairs=6`, the most
            pairs of a look-up.

    Returns:
        A row for each problem, or None where no set has that name.

    Raises:
        UsageError: An option that the set doesn't take, or a value that it can't have.
    """
    name, _, written = text.partition(":")
    problems = problem_sets().get(name)
    if problems is None:
        return None
    known = set(inspect.signature(problems.make).parameters)
    options = {"count": 100, "seed": 0} | dict(_option(name, known, part) for part in written.split(",") if part)
    rows: list[dict[str, Any]] = problems.make(**options)
    return rows


def _option(name: str, known: set[str], part: str) -> tuple[str, int | tuple[int, int]]:
    option, _, value = part.partition("=")
    if option in known and option == "operations":
        least, _, most = value.partition("-")
        found = [int(bound) for bound in (least, most or least) if bound.isdecimal()]
        if len(found) == 2 and 1 <= found[0] <= found[1]:
            return option, (found[0], found[1])
    elif option in known and value.isdecimal() and (option != "count" or int(value) > 0):
        return option, int(value)
    more = ", and operations=N-M" if "operations" in known else ""
    raise UsageError(f"the problems {name!r} take count=N and seed=N{more}, as in {name}:count=50,seed=1, not {part!r}")
