"""`outlay methods`: the catalogue, and one of its entries in detail."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import textwrap
import types
import typing
from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING, Any, cast

from outlay.cli import terminal

if TYPE_CHECKING:
    from outlay.engine.method import Method

DESCRIPTION = "Lists the methods that decode, or explains one: its paper, what it spends and saves, its options."
EXAMPLES = """examples:
  outlay methods
  outlay methods beam
  outlay methods --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a method to explain")
    parser.add_argument("--json", action="store_true", help="print JSON: a list of methods, or the one named")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from outlay import catalog

    if args.name is not None:
        method = catalog.find(args.name)
        print(json.dumps(_as_dict(args.name, method)) if args.json else _page(args.name, method))
        return 0
    known = catalog.methods()
    if args.json:
        print(json.dumps([_as_dict(name, method) for name, method in known.items()]))
        return 0
    rows = [
        (name, method.about.family, "yes" if method.about.exact else "no", method.about.summary)
        for name, method in known.items()
    ]
    print(terminal.table(("method", "family", "exact", "what it does"), rows, sys.stdout))
    print(f"\n`outlay methods {rows[0][0]}` explains one of them.")
    return 0


def _page(name: str, method: type[Method]) -> str:
    """Returns all about one method, for people."""
    about = method.about
    facts = [
        ("family", about.family),
        ("paper", about.paper),
        ("spends", about.spends),
        ("saves", about.saves),
        ("needs", ", ".join(about.needs)),
        ("exact", "yes" if about.exact else "no"),
    ]
    options = _options(method)
    example = name
    if options:
        value = options[0].get("default", "VALUE")
        example += f":{options[0]['name']}={value}"
    parts = [
        f"{terminal.bold(name, sys.stdout)}: {about.summary}",
        terminal.pairs([(label, value) for label, value in facts if value], sys.stdout),
        _paragraph(inspect.cleandoc(method.__doc__ or "")),
    ]
    if options:
        rows = [(option["name"], option.get("default", "required"), option["type"]) for option in options]
        parts.append(terminal.table(("option", "default", "takes"), rows, sys.stdout))
    parts.append(f'outlay run "Why is the sky blue?" --method {example}')
    return "\n\n".join(filter(None, parts))


def _paragraph(text: str) -> str:
    return "\n\n".join(textwrap.fill(part, terminal.columns()) for part in text.split("\n\n"))


def _as_dict(name: str, method: type[Method]) -> dict[str, Any]:
    return {**asdict(method.about), "name": name, "needs": list(method.about.needs), "options": _options(method)}


def _options(method: type[Method]) -> list[dict[str, str]]:
    """Returns each option's name, its type in words and, unless it must be given, its default as it is typed."""
    kinds = typing.get_type_hints(method)
    options = []
    for option in fields(cast(Any, method)):
        described = {"name": option.name, "type": _words(kinds[option.name])}
        if option.default is not MISSING:
            described["default"] = _typed(option.default)
        elif option.default_factory is not MISSING:
            described["default"] = _typed(option.default_factory())
        options.append(described)
    return options


def _words(kind: Any) -> str:
    """Returns what an annotation accepts, in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, parts))
    if origin is typing.Literal:
        return " or ".join(map(_typed, parts))
    if origin is tuple:
        return "numbers with x between them"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", type(None): "none"}
    return names.get(kind, str(kind))


def _typed(value: object) -> str:
    """Returns a value as it is typed after `--method`."""
    if isinstance(value, tuple):
        return "x".join(map(_typed, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
