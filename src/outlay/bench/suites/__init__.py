"""Small sets of prompts made with a seed: the same on every machine, nothing to download.

A module here is a suite by that alone. It has a `SUMMARY` and `make(count, seed)`, which returns rows as a file of
prompts has them; a larger `count` begins with the same rows.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from outlay.errors import UsageError


def suites() -> dict[str, ModuleType]:
    """Returns the suites by name."""
    return {
        module.name: importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)
    }


def make(text: str) -> list[dict[str, Any]] | None:
    """Makes the rows of `"name"` or `"name:count=50,seed=1"` (default 100 and 0); None where no suite has that name.

    Raises `UsageError` for an option that suites don't have.
    """
    name, _, written = text.partition(":")
    suite = suites().get(name)
    if suite is None:
        return None
    options: Mapping[str, int] = {"count": 100, "seed": 0} | dict(
        _option(name, part) for part in written.split(",") if part
    )
    rows: list[dict[str, Any]] = suite.make(**options)
    return rows


def _option(name: str, part: str) -> tuple[str, int]:
    option, _, value = part.partition("=")
    if option not in ("count", "seed") or not value.isdecimal() or (option == "count" and int(value) == 0):
        raise UsageError(f"the suite {name!r} takes count=N and seed=N, as in {name}:count=50,seed=1, not {part!r}")
    return option, int(value)
