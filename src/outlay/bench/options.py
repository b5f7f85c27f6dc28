"""Options that suites share."""

from __future__ import annotations

import argparse
from pathlib import Path

from outlay.errors import UsageError, nearest

WITHOUT_KERNELS = "/torch"  # behind the name of a weight format: with torch's operators only


def names(kind: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names in `text`, which are separated by commas. Raises `UsageError` for one that is not known."""
    found = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    strange = next((name for name in found if name not in known), None)
    if strange is not None:
        raise UsageError(f"there is no {kind} {strange!r}{nearest(strange, known)}; there are {', '.join(known)}")
    return found


def refuse_below_one(args: argparse.Namespace, *options: str) -> None:
    """Raises `UsageError` where one of these options is less than 1."""
    for name in options:
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} must be 1 or more, not {getattr(args, name)}")


def check_folder_of(file: Path | None) -> None:
    """Raises `UsageError` where the folder that `file` (None: nothing) is to be written into is not there."""
    if file is not None and not file.resolve().parent.is_dir():
        raise UsageError(f"there is no folder {file.resolve().parent} to write {file.name} into")
