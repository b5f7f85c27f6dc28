"""The catalogue: every method by name, with its options, whether the engine runs it or it does another task than text.

Ours are found in the packages of `HOMES`; other packages offer theirs as entry points `outlay.methods`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import pkgutil
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar, cast

import outlay.attend
import outlay.codec.circuit
import outlay.codec.lic
import outlay.decode
import outlay.diffuse
import outlay.vision
import outlay.vision.detect
from outlay.about import About, Entry
from outlay.attend.policy import CachePolicy
from outlay.decode.under_policy import UnderPolicy
from outlay.engine.method import Method
from outlay.errors import FailureError, UsageError, nearest
from outlay.models.load import Model
from outlay.rewards.scorer import Scorer

ENTRY_POINTS = "outlay.methods"
Made = TypeVar("Made")
HOMES = (
    outlay.attend,
    outlay.decode,
    outlay.diffuse,
    outlay.vision,
    outlay.vision.detect,
    outlay.codec.circuit,
    outlay.codec.lic,
)


@dataclass(frozen=True)
class Option:
    """One option of a method, in the words of the command line."""

    name: str
    """The field's name, as it stands after `NAME:`."""

    type: str
    """The values that it accepts, in words: "a whole number", "c or s"."""

    default: str | None
    """The default as it would be typed; None where a value must be given."""

    doc: str
    """The string below the field in the class, on one line; empty without one."""


@cache
def entries() -> dict[str, type[Entry]]:
    """Returns all that is in the catalogue by name, ours first.

    Raises:
        FailureError: for a package whose entry point can't be used.
    """
    return found_in(HOMES, ENTRY_POINTS, "Method")


def found_in(homes: Sequence[types.ModuleType], group: str, kind: str) -> dict[str, type[Entry]]:
    """Returns the entries in packages of ours and behind the entry points of others, by name, ours first.

    Args:
        homes: Our packages.
        group: The group of entry points.
        kind: The class that an entry point must name a subclass of, for messages.

    Raises:
        FailureError: for a package whose entry point can't be used.
    """
    found: dict[str, type[Entry]] = {}
    for home in homes:
        for module in pkgutil.walk_packages(home.__path__, home.__name__ + "."):
            for value in vars(importlib.import_module(module.name)).values():
                if _is_entry(value) and not inspect.isabstract(value) and value.__module__ == module.name:
                    found[value.about.name] = value
    for entry in entry_points(group=group):
        try:
            method = entry.load()
        except (ImportError, AttributeError) as error:
            raise FailureError(f"the method {entry.name!r} of {_package(entry)} can't be loaded: {error}") from error
        if not _is_entry(method):
            raise FailureError(f"the method {entry.name!r} of {_package(entry)} is not a {kind} class with an `about`")
        found.setdefault(entry.name, method)
    return found


def _is_entry(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Entry) and isinstance(getattr(value, "about", None), About)


@cache
def methods() -> dict[str, type[Method]]:
    """Returns the methods that the engine runs, by name."""
    return {name: entry for name, entry in entries().items() if issubclass(entry, Method)}


@cache
def policies() -> dict[str, type[CachePolicy]]:
    """Returns the cache policies, by name."""
    return {name: entry for name, entry in entries().items() if issubclass(entry, CachePolicy)}


def _package(entry: Any) -> str:
    return f"package {entry.dist.name!r}" if entry.dist else f"{entry.value!r}"


def find(name: str) -> type[Entry]:
    """Returns the entry of that name. Raises `UsageError` with the nearest names."""
    known = entries()
    if name not in known:
        raise UsageError(
            f"there is no method {name!r}{nearest(name, known)}; `outlay methods` lists them: {', '.join(known)}"
        )
    return known[name]


def options(method: type[Entry]) -> list[Option]:
    """Returns the options of a method class, in the order of its fields; those that are given by name alone are last.

    An option is documented by the string below its field, in the class or in the nearest base class that has one.

    Args:
        method: A method class, ours or another package's. A class without source, such as one made in an interpreter,
            has options without `doc`.
    """
    kinds, docs = typing.get_type_hints(method), _field_docs(method)
    return [
        Option(field.name, in_words(kinds[field.name]), _default(field), docs.get(field.name, ""))
        for field in sorted(fields(cast(Any, method)), key=lambda field: field.kw_only is True)
    ]


def _default(option: Field[Any]) -> str | None:
    if option.default is not MISSING:
        return typed(option.default)
    return typed(option.default_factory()) if option.default_factory is not MISSING else None


def _field_docs(method: type) -> dict[str, str]:
    """Returns the text of each documented field: the one of the class itself before those of its base classes."""
    docs: dict[str, str] = {}
    for base in reversed(method.__mro__):
        docs |= _own_field_docs(base)
    return docs


def _own_field_docs(base: type) -> dict[str, str]:
    """Returns the strings that stand right below annotated names in the body of one class."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
    except (OSError, TypeError, SyntaxError):  # built in, made in an interpreter, or without its file
        return {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    docs = {}
    for field, text in itertools.pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
            docs[field.target.id] = " ".join(text.value.value.split())
    return docs


def typed(value: object) -> str:
    """Returns a value as it is typed after `--method NAME:option=`."""
    if isinstance(value, tuple):
        return "x".join(map(typed, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def in_words(kind: Any, literal: Callable[[Any], str] = typed) -> str:
    """Returns the values that an annotation accepts, in words; `literal` writes those of a `Literal`."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(part, literal) for part in parts)
    if origin is typing.Literal:
        return " or ".join(map(literal, parts))
    if origin is tuple:
        return "numbers with x between them"
    if origin is Callable:
        return "a function, given in Python"
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a name",
        type(None): "none",
        Model: "a model",
        Scorer: "a scorer",
    }
    return names.get(kind, f"a {kind.__name__}, made in Python" if isinstance(kind, type) else str(kind))


def parse(text: str) -> Method:
    """Makes a method that the engine runs from `"name"` or `"name:option=value,..."`.

    The name of a cache policy stands for greedy decoding or sampling under it.

    Raises:
        UsageError: for what it doesn't know, and for an entry that does another task than text.
    """
    name = text.partition(":")[0].strip()
    about = find(name).about
    made = make(text) if name in methods() or name in policies() else None
    if isinstance(made, CachePolicy):
        return UnderPolicy(made)
    if not isinstance(made, Method):
        raise UsageError(f"{name!r} doesn't decode tokens, its task is {about.task}; run it with: {about.command}")
    return made


def parse_policy(text: str) -> CachePolicy:
    """Makes a cache policy from `"name"` or `"name:option=value,..."`. Raises `UsageError` for what it doesn't know."""
    name, known = text.partition(":")[0].strip(), policies()
    if name not in known:
        raise UsageError(f"there is no cache policy {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    policy = make(text)
    assert isinstance(policy, CachePolicy), "policies are found by their class"
    return policy


def make(text: str) -> Entry:
    """Makes any entry from `"name"` or `"name:option=value,..."`. Raises `UsageError` for what it doesn't know."""
    name, _, written = text.partition(":")
    return made(find(name.strip()), "method", name, written)


def made(kind: type[Made], what: str, name: str, written: str, usual: Mapping[str, Any] | None = None) -> Made:
    """Makes a dataclass of options as they are typed.

    Args:
        kind: The dataclass.
        what: What it is, such as "method", for messages.
        name: Its name.
        written: `"option=value,..."`, or "".
        usual: Values of options that aren't written, in place of the dataclass's defaults.

    Raises:
        UsageError: For an option that it doesn't have, a value of the wrong type, or one that is missing.
    """
    kinds = typing.get_type_hints(kind)
    values: dict[str, Any] = dict(usual or {})
    known = [option.name for option in fields(cast(Any, kind))]
    for part in filter(None, written.split(",")):
        option, equals, value = (word.strip() for word in part.partition("="))
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise UsageError(f"{what} {name!r} has no option {option!r}{nearest(option, known)}; {has}")
        if not equals:
            raise UsageError(f"option {option!r} of {what} {name!r} needs a value: {name}:{option}=VALUE")
        values[option] = _read(f"option {option!r} of {what} {name!r}", value, kinds[option])
    missing = [o.name for o in fields(cast(Any, kind)) if _required(o) and o.name not in values]
    if missing:
        raise UsageError(f"{what} {name!r} needs {', '.join(missing)}: {name}:{missing[0]}=VALUE")
    return kind(**values)


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
    raise UsageError(f"{what} must be {in_words(kind, repr)}, not {text!r}")


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
        return tuple(_convert(number, part) for number in text.split("x"))
    if typing.get_origin(kind) is typing.Literal:
        for value in typing.get_args(kind):
            if text == str(value):
                return value
    raise ValueError(text)


def _false(text: str) -> bool:
    if text.lower() not in ("false", "no", "0"):
        raise ValueError(text)
    return False
