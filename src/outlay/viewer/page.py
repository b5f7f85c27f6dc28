"""One HTML file out of a template, its styles, its scripts and its data; it loads nothing from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from outlay.errors import FailureError

ASSETS = files("outlay.viewer") / "assets"


def write_page(
    path: Path,
    template: str,
    styles: Sequence[str],
    scripts: Sequence[str],
    data: Mapping[str, Any],
    parts: Mapping[str, str] | None = None,
) -> None:
    """Writes the page to `path`, each of `parts` in place of its mark. Raises `FailureError` where it can't be done."""
    page = _asset(template)
    for mark, part in (parts or {}).items():
        page = page.replace(mark, _asset(part), 1)
    for mark, content in (
        ("/* styles */", "\n".join(map(_asset, styles))),
        ("/* scripts */", "\n".join(map(_asset, scripts))),
        ("/* data */", _embedded(data)),
    ):
        page = page.replace(mark, content, 1)
    try:
        path.write_text(page, encoding="utf-8", errors="replace")  # half a surrogate pair is no text
    except OSError as error:
        raise FailureError(f"can't write {path}: {error.strerror}") from error


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _embedded(data: Mapping[str, Any]) -> str:
    """Returns JSON that a script element can hold: nothing in it ends the element, whatever a model wrote."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
