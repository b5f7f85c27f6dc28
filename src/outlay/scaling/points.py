"""The measurements that scaling laws are fitted to."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from outlay.errors import UsageError
from outlay.prompts import decode


@dataclass(frozen=True)
class Point:
    """A measurement of a draft."""

    value: float
    """What was measured, such as tau, the mean acceptance length."""
    error: float = 0.0
    """Its standard error."""
    tokens: float = 1.0
    """Tokens that the draft was trained on."""
    layers: float = 1.0
    """Decoder layers of the draft."""
    batch: float = 1.0
    """Requests that were decoded together."""
    what: str = "tau at depth 5"
    """The kind of value; different kinds are not fitted together."""


def read_table(path: Path) -> list[Point]:
    """Reads points from a JSON file.

    Raises:
        UsageError: The file can't be read or holds no list of points.
    """
    try:
        rows = json.loads(decode(path.read_bytes(), str(path)))
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is no JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{path} must hold a list of points, each with value and tokens, layers or batch")
    return read_points(rows)


def read_points(rows: Sequence[Any]) -> list[Point]:
    """Makes points of the rows of a table.

    Raises:
        UsageError: A row is no object with a value, or holds something other than finite numbers and sizes above 0.
    """
    known = set(Point.__dataclass_fields__)
    points = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or "value" not in row or set(row) - known:
            raise UsageError(f"point {number} must be an object with value and any of {', '.join(sorted(known))}")
        try:
            numbers = {name: float(value) for name, value in row.items() if name != "what"}
            sizes = [numbers[name] for name in ("tokens", "layers", "batch") if name in numbers]
            if not all(map(math.isfinite, numbers.values())) or not all(size > 0 for size in sizes):
                raise ValueError
            points.append(replace(Point(0.0), **numbers, what=str(row.get("what", Point.what))))
        except (TypeError, ValueError):
            raise UsageError(f"point {number} must hold numbers, and sizes above 0: {row!s:.80}") from None
    return points
