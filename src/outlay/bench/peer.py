"""Imports the packages of other engines, which are optional, in the processes that run them."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

from outlay.errors import FailureError


def peer(module: str, distribution: str) -> tuple[Any, str]:
    """Imports another engine and returns it with its version. Raises `FailureError` where it is not installed."""
    try:
        return import_module(module), version(distribution)
    except ImportError as error:
        raise FailureError(f"not installed ({error}): pip install 'outlay[bench]'") from error
