"""`outlay methods`: the catalogue, and one of its entries in detail."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from outlay.about import TEXT
from outlay.cli import terminal

if TYPE_CHECKING:
    from outlay.about import Entry
    from outlay.catalog import Option

DESCRIPTION = "Lists the methods, or explains one: its paper, what it spends and saves, and its options."
EXAMPLES = """examples:
  outlay methods
  outlay methods beam
  outlay methods --json
"""
INDENT = "    "  # of the text about an option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a method to explain")
    parser.add_argument("--json", action="store_true", help="print JSON: a list of methods, or the one named")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from outlay import catalog
    from outlay.shrink.catalog import shrinkers

    known: dict[str, type[Entry]] = {**catalog.entries(), **shrinkers()}
    if args.name is not None:
        method = known.get(args.name) or catalog.find(args.name)
        print(json.dumps(_as_dict(args.name, method)) if args.json else _page(args.name, method))
        return 0
    if args.json:
        print(json.dumps([_as_dict(name, method) for name, method in known.items()]))
        return 0
    rows = sorted(
        ((name, method.about.family, _exact(method), method.about.summary) for name, method in known.items()),
        key=lambda row: (row[1], row[0]),
    )
    print(terminal.table(("method", "family", "exact", "what it does"), rows, sys.stdout))
    print(f"\n`outlay methods {rows[0][0]}` explains one of them.")
    return 0


def _page(name: str, method: type[Entry]) -> str:
    """Returns all about one method, for people."""
    from outlay import catalog

    about = method.about
    facts = [
        ("family", about.family),
        ("paper", about.paper),
        ("spends", about.spends),
        ("saves", about.saves),
        ("needs", ", ".join(about.needs)),
        ("exact", _exact(method).strip("-")),
        ("task", about.task),
        ("counts", ", ".join(f"{count} ({unit})" for count, unit in about.counts.items())),
    ]
    options = catalog.options(method)
    example = name
    if options:
        example += f":{options[0].name}={'VALUE' if options[0].default is None else options[0].default}"
    parts = [
        f"{terminal.bold(name, sys.stdout)}: {about.summary}",
        terminal.pairs([(label, value) for label, value in facts if value], sys.stdout),
        _paragraph(inspect.cleandoc(method.__doc__ or "")),
    ]
    if options:
        parts.append(_option_list(options))
    parts.append(about.command or f'outlay run "Why is the sky blue?" --method {example}')
    return "\n\n".join(filter(None, parts))


def _exact(method: type[Entry]) -> str:
    """Returns whether the text is the target's own; "-" for what writes none."""
    if method.about.task != TEXT:
        return "-"
    return "yes" if method.about.exact else "no"


def _paragraph(text: str) -> str:
    return "\n\n".join(textwrap.fill(part, terminal.columns()) for part in text.split("\n\n"))


def _option_list(options: Sequence[Option]) -> str:
    """Returns a line for each option with its default and the values that it takes, and below it what it does."""
    header = ("option", "default", "takes")
    rows = [(option.name, "required" if option.default is None else option.default, option.type) for option in options]
    name_width, default_width, _ = (max(map(len, column)) for column in zip(header, *rows, strict=True))

    def line(row: Sequence[str]) -> str:
        return f"{row[0]:<{name_width}}  {row[1]:<{default_width}}  {row[2]}"

    lines = [terminal.dim(line(header), sys.stdout)]
    for row, option in zip(rows, options, strict=True):
        lines.append(line(row))
        lines += textwrap.wrap(option.doc, terminal.columns(), initial_indent=INDENT, subsequent_indent=INDENT)
    return "\n".join(lines)


def _as_dict(name: str, method: type[Entry]) -> dict[str, Any]:
    """Returns all about one method as JSON has it; an option that must be given has no default."""
    from outlay import catalog

    options = [
        {key: value for key, value in asdict(option).items() if value is not None} for option in catalog.options(method)
    ]
    return {**asdict(method.about), "name": name, "needs": list(method.about.needs), "options": options}
