"""The folder of a comparison: its files, its lock for one process at a time, and its manifest."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outlay.compare.manifest import identity
from outlay.errors import FailureError, UsageError

MANIFEST, PROMPTS, RUNS, QUALITY = "manifest.json", "prompts.jsonl", "runs.jsonl", "quality.jsonl"
RESULTS, TABLE, REPORT, TRACES = "results.json", "results.csv", "report.html", "traces"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process, and makes it where there is none. Raises `UsageError` if it can't be used."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"can't use {folder} as the output folder: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{folder} is in use by another comparison; wait for its end or choose another") from None
        _refuse_strange(folder)
        yield
    finally:
        os.close(descriptor)


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns a manifest. Raises `UsageError` for a file that is none."""
    path = path / MANIFEST if path.is_dir() else path
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"can't read the manifest {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not the manifest of a comparison: {error}") from error
    try:
        identity(manifest)
    except (KeyError, TypeError):
        raise UsageError(f"{path} is not the manifest of a comparison") from None
    return dict(manifest)


def join(folder: Path, manifest: dict[str, Any], prompts: str) -> None:
    """Begins the comparison in an empty folder, or goes on with the same one.

    Raises `UsageError`, with what differs, if the folder holds another.
    """
    known = read_manifest(folder) if (folder / MANIFEST).exists() else None
    if known is not None:
        before, now = identity(known), identity(manifest)
        differing = [f"its {name} is {_short(before.get(name))}, not {_short(now[name])}" for name in now
                     if before.get(name) != now[name]]  # fmt: skip
        if differing:
            raise UsageError(f"{folder} holds another comparison: {', '.join(differing)}; choose another folder")
        manifest = {**manifest, "created": known["created"]}
    write(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    write(folder / PROMPTS, prompts)


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all. Raises `FailureError` where that fails."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_text(text, encoding="utf-8", errors="replace")
        beside.replace(path)
    except OSError as error:
        raise FailureError(f"can't write {path}: {error.strerror}") from error


def _refuse_strange(folder: Path) -> None:
    """Raises `UsageError` for a folder that holds files but no comparison."""
    names = {path.name for path in folder.iterdir()} - {f".{MANIFEST}.part"}
    if names and MANIFEST not in names:
        raise UsageError(f"{folder} is not empty and holds no comparison; choose another folder")
    if names:
        read_manifest(folder)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
