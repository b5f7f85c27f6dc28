"""Every method by name: those in `outlay.decode` and those that other packages offer as entry points
`outlay.methods`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
import typing
from dataclasses import MISSING, fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import outlay.decode
from outlay.engine.method import About, Method
from outlay.errors import FailureError, UsageError, nearest

ENTRY_POINTS = "outlay.methods"


@cache
def methods() -> dict[str, type[Method]]:
    """Returns all methods by name, ours first. Raises `FailureError` for a package whose entry point can't be used."""
    found: dict[str, type[Method]] = {}
    for module in pkgutil.walk_packages(outlay.decode.__path__, outlay.decode.__name__ + "."):
        for value in vars(importlib.import_module(module.name)).values():
            if (
                isinstance(value, type)
                and issubclass(value, Method)
                and not inspect.isabstract(value)
                and value.__module__ == module.name
            ):
                found[value.about.name] = value
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            method = entry.load()
        except (ImportError, AttributeError) as error:
            raise FailureError(f"the method {entry.name!r} of {_package(entry)} can't be loaded: {error}") from error
        if not (
            isinstance(method, type)
            and issubclass(method, Method)
            and isinstance(getattr(method, "about", None), About)
        ):
            raise FailureError(f"the method {entry.name!r} of {_package(entry)} is not a Method class with an `about`")
        found.setdefault(entry.name, method)
    return found


def _package(entry: Any) -> str:
    return f"package {entry.dist.name!r}" if entry.dist else f"{entry.value!r}"


def find(name: str) -> type[Method]:
    """Returns the method of that name. Raises `UsageError` with the nearest names."""
    known = methods()
    if name not in known:
        raise UsageError(
            f"there is no method {name!r}{nearest(name, known)}; `outlay methods` lists them: {', '.join(known)}"
        )
    return known[name]


def parse(text: str) -> Method:
    """Makes a method from `"name"` or `"name:option=value,..."`. Raises `UsageError` for what it doesn't know."""
    name, _, written = text.partition(":")
    method = find(name.strip())
    types = typing.get_type_hints(method)
    options: dict[str, Any] = {}
    known = [option.name for option in fields(method)]  # type: ignore[arg-type]
    for part in filter(None, written.split(",")):
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise UsageError(f"method {name!r} has no option {option!r}{nearest(option, known)}; {has}")
        if not equals:
            raise UsageError(f"option {option!r} of method {name!r} needs a value: {name}:{option}=VALUE")
        options[option] = _read(f"option {option!r} of method {name!r}", value, types[option])
    missing = [o.name for o in fields(method) if _required(o) and o.name not in options]  # type: ignore[arg-type]
    if missing:
        raise UsageError(f"method {name!r} needs {', '.join(missing)}: {name}:{missing[0]}=VALUE")
    return method(**options)


def _required(option: Any) -> bool:
    return option.default is MISSING and option.default_factory is MISSING


def _read(what: str, text: str, kind: Any) -> Any:
    """Turns an option's text into a value of its annotated type; a tuple is written with "x" between its parts."""
    choices = (
        typing.get_args(kind)
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
        else (kind,)
    )
    for choice in choices:
        try:
            return _convert(text, choice)
        except ValueError:
            continue
    wanted = " or ".join(_described(choice) for choice in choices)
    raise UsageError(f"{what} must be {wanted}, not {text!r}")


def _convert(text: str, kind: Any) -> Any:
    if kind is bool:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
            text.lower()
        ) or _false(text)
    if kind in (int, float, str):
        return kind(text)
    if kind is type(None) and text.lower() == "none":
        return None
    if typing.get_origin(kind) is tuple:
        part = typing.get_args(kind)[0]
        return tuple(_convert(piece, part) for piece in text.split("x"))
    if typing.get_origin(kind) is typing.Literal:
        for value in typing.get_args(kind):
            if text == str(value):
                return value
    raise ValueError(text)


def _false(text: str) -> bool:
    if text.lower() not in ("false", "no", "0"):
        raise ValueError(text)
    return False


def _described(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "numbers with x between them"
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", type(None): "none"}
    return names.get(kind, str(kind))
