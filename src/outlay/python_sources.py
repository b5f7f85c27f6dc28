"""Text and code that come with Python: its standard library, in a fixed order."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def library_files() -> list[Path]:
    """Returns the modules of the standard library, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = (path for path in root.rglob("*.py") if not SKIPPED & set(path.relative_to(root).parts))
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def library_sources(characters: int) -> Iterator[str]:
    """Yields the sources of modules that are spread evenly over the library.

    Args:
        characters: the length of all sources together, at most.
    """
    files = library_files()
    total = sum(path.stat().st_size for path in files)
    step = max(1, total // max(characters, 1))
    for path in files[::step]:
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        characters -= len(source)
        if characters < 0:
            return
        yield source
