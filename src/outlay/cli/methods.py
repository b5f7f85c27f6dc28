"""`outlay methods`: the catalogue, and one of its entries in detail."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import typing
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

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
    options = [(option["name"], _option_line(option)) for option in _options(method)]
    example = f"{name}:{options[0][0]}={_written(options_default(method))}" if options else name
    parts = [
        f"{terminal.bold(name, sys.stdout)}: {about.summary}",
        terminal.pairs([(label, value) for label, value in facts if value], sys.stdout),
        inspect.cleandoc(method.__doc__ or ""),
    ]
    if options:
        parts.append("Options:\n" + terminal.pairs(options, sys.stdout))
    parts.append(f'outlay run "Why is the sky blue?" --method {example}')
    return "\n\n".join(filter(None, parts))
