"""Finds the suites, which are the folders beside this file."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from outlay import bench

if TYPE_CHECKING:
    from outlay.bench.suite import Suite

Report = Callable[[Mapping[str, Any]], str]


def summaries() -> dict[str, str]:
    """Returns what each suite measures, by name; that imports no suite."""
    folders = [module.name for module in pkgutil.iter_modules(bench.__path__) if module.ispkg]
    return {name: str(import_module(f"outlay.bench.{name}").__doc__).strip().rstrip(".") for name in folders}


def find(name: str) -> Suite[Any]:
    """Returns a suite by name."""
    suite: Suite[Any] = import_module(f"outlay.bench.{name}.suite").SUITE
    return suite


def tables(name: str) -> Mapping[str, Report]:
    """Returns the tables that the documentation can show of a suite's results, by name."""
    found: Mapping[str, Report] = import_module(f"outlay.bench.{name}.report").TABLES
    return found
