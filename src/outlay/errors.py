"""The errors that a user sees: one line each, saying what is wrong and what would be right."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class OutlayError(Exception):
    """Anything `outlay` refuses or fails at. Its text is one line, fit to be shown to a user."""


class UsageError(OutlayError, ValueError):
    """What the user typed or gave is wrong; the command line exits with status 2."""


class FailureError(OutlayError, RuntimeError):
    """What was asked for is right but could not be done; the command line exits with status 1."""


class QueueFull(FailureError):
    """As many requests wait as the engine takes; a later one may find room."""


class ScorerError(FailureError):
    """A scorer's own code failed. What it says may be meant for those alone who gave the scorer."""


class CacheFull(FailureError):
    """No slot is left in a cache."""


class OutlayWarning(UserWarning):
    """One line that a user should read; what was asked for goes on."""


def one_line(error: BaseException) -> str:
    """Returns an error's text on one line; the type comes first if it is not our own."""
    text = str(error) if isinstance(error, OutlayError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns " (did you mean 'a' or 'b'?)" for the names in `known` that are closest to `word`, or ""."""
    close = get_close_matches(word, list(known), n=2, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(name) for name in close)}?)" if close else ""
