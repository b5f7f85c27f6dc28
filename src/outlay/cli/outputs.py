"""Files that commands read and write: folders gone through, results written beside the target and renamed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from outlay.errors import FailureError, UsageError

STANDARD = "-"


@dataclass(frozen=True)
class Source:
    """What is read: a file, or standard input."""

    path: Path | None
    """None: standard input."""
    below: Path = Path()
    """The folders between the folder that the user named and the file."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return STANDARD if self.path is None else str(self.path)

    @property
    def name(self) -> str:
        """The file's name."""
        return "stdin" if self.path is None else self.path.name

    @property
    def size(self) -> int:
        """Its bytes, 0 where they are not known."""
        return self.path.stat().st_size if self.path is not None else 0

    def remove(self) -> None:
        """Deletes the file."""
        assert self.path is not None, "checked before"
        self.path.unlink()


@dataclass(frozen=True)
class Output:
    """Where a result goes."""

    source: Source
    path: Path | None
    """None: standard output."""

    @classmethod
    def beside(cls, source: Source, out: str | None, count: int, name: str) -> Output:
        """Returns where the result of one of `count` sources goes, with this name where the user gave none.

        Raises:
            UsageError: Where a folder has to be named, or a file.
        """
        if out == STANDARD or (out is None and source.path is None):
            if count > 1:
                raise UsageError("several results don't go to standard output; name a folder with --out DIR")
            return cls(source, None)
        if out is None:
            assert source.path is not None
            return cls(source, source.path.with_name(name))
        target = Path(out)
        if count == 1 and not target.is_dir() and source.below == Path():
            return cls(source, target)
        if target.exists() and not target.is_dir():
            raise UsageError(f"{out} is a file, but there are {count} results; name a folder")
        return cls(source, target / source.below / name)

    @property
    def to_stdout(self) -> bool:
        """Whether it is standard output."""
        return self.path is None

    @property
    def label(self) -> str:
        """What messages call it."""
        return STANDARD if self.path is None else str(self.path)

    def write(self, data: bytes) -> None:
        """Writes a result, whole or not at all. Raises `FailureError` where it can't be written."""
        if self.path is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            if self.source.path is not None:
                shutil.copymode(self.source.path, part)
            part.replace(self.path)
        except OSError as error:
            raise FailureError(f"can't write {self.path}: {error.strerror}") from error
        finally:
            with suppress(OSError):
                part.unlink()


def sources(names: Sequence[str], *, skip: str = "", only: str = "") -> list[Source]:
    """Returns what is to be read, folders gone through.

    Args:
        names: Files and folders; "-" is standard input.
        skip: An end of names that is left out in folders.
        only: The end of names that alone is taken in folders.

    Raises:
        UsageError: For a name that is not there, or twice, or a folder with nothing in it.
    """
    found: list[Source] = []
    for name in names:
        path = Path(name)
        if name == STANDARD:
            found.append(Source(None))
        elif path.is_dir():
            inside = [each for each in sorted(path.rglob("*")) if each.is_file()]
            taken = [each for each in inside if each.name.endswith(only) and not (skip and each.name.endswith(skip))]
            if not taken:
                raise UsageError(f"there is no file in {path} to work on")
            found += [Source(each, each.parent.relative_to(path)) for each in taken]
        elif path.is_file():
            found.append(Source(path))
        else:
            raise UsageError(f"there is no file {name}")
    labels = [source.label for source in found]
    twice = next((label for label in labels if labels.count(label) > 1), None) if len(labels) < 1000 else None
    if twice is not None:
        raise UsageError(f"{twice} is named twice")
    return found


def check_outputs(outputs: Sequence[Output], *, force: bool, remove: bool) -> None:
    """Raises `UsageError`, before anything is done, for a result that would overwrite something."""
    paths = [output.path for output in outputs if output.path is not None]
    if len(set(paths)) < len(paths):
        raise UsageError("two results would have the same name; name a folder with --out DIR, or work on one at a time")
    there = next((path for path in paths if path.exists()), None)
    if there is not None and not force:
        raise UsageError(f"{there} is there already; --force overwrites it")
    if there is not None and there.is_dir():
        raise UsageError(f"{there} is a folder")
    if remove and any(output.source.path is None for output in outputs):
        raise UsageError("--rm deletes files; there is none where standard input is read")
    if any(output.to_stdout for output in outputs) and sys.stdout.isatty():
        raise UsageError("the result is not for a terminal; redirect standard output, or name a file with --out FILE")


def read_input(source: Source) -> bytes:
    """Returns the content of a source. Raises `UsageError` where it can't be read."""
    try:
        return sys.stdin.buffer.read() if source.path is None else source.path.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {source.label}: {error.strerror}") from error
