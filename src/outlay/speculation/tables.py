"""Tables of n-grams by name: files, and the one of Python's standard library."""

from __future__ import annotations

import contextlib
from functools import cache
from pathlib import Path

from outlay.errors import UsageError
from outlay.models import hub
from outlay.models.load import Model
from outlay.models.tokenizer import Tokenizer
from outlay.python_sources import library_sources
from outlay.speculation.ngrams import NgramTable, tokenizer_fingerprint

_DEFAULT_CHARACTERS = 6_000_000  # of Python's source in the table that is made at first use


def open_table(name: str, model: Model) -> NgramTable | None:
    """Returns the table of n-grams that `name` means for a model: a file, "default", or "none".

    Raises:
        UsageError: For a file that is no table, or one of another tokenizer.
    """
    if name == "none":
        return None
    if name == "default":
        return default_table(model.tokenizer)
    path = Path(name)
    return _opened(path, path.stat().st_mtime_ns if path.exists() else 0, model.tokenizer)


@cache
def default_table(tokenizer: Tokenizer) -> NgramTable:
    """Returns tri-grams of Python's standard library in these tokens; counts them at first use, in a few seconds."""
    path = hub.cache_folder().parent / "tables" / f"python-{tokenizer_fingerprint(tokenizer)[:16]}.safetensors"
    with contextlib.suppress(UsageError):  # there is none, or a damaged one
        return NgramTable.load(path, tokenizer)
    documents = (tokenizer.encode(text) for text in library_sources(_DEFAULT_CHARACTERS))
    NgramTable.build(documents, tokenizer_fingerprint(tokenizer)).save(path)
    return NgramTable.load(path, tokenizer)


@cache
def _opened(path: Path, changed: int, tokenizer: Tokenizer) -> NgramTable:
    """Opens a table once for as long as its file stays the same."""
    return NgramTable.load(path, tokenizer)
