"""`outlay bench`: runs one of the suites in `outlay.bench`, or renews the tables of the documentation."""

from __future__ import annotations

import argparse

from outlay.bench import docs, registry
from outlay.cli.arguments import Parser
from outlay.errors import UsageError, nearest

DOCS = "docs"
WHAT = dict(sorted({**registry.summaries(), DOCS: docs.SUMMARY}.items()))

DESCRIPTION = "Runs a benchmark and prints its table."
EXAMPLES = "suites:\n" + "\n".join(f"  {name:<11} {what}" for name, what in WHAT.items())
EXAMPLES += "\n\n`outlay bench SUITE --help` shows a suite's options.\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay bench SUITE [...]"
    parser.add_argument("suite", nargs="?", metavar="SUITE", help="which one")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Runs the suite with what follows its name; returns its exit status."""
    known = ", ".join(WHAT)
    if args.suite is None:
        raise UsageError(f"say which suite to run: {known}")
    if args.suite not in WHAT:
        raise UsageError(f"there is no suite {args.suite!r}{nearest(args.suite, WHAT)}; the suites are {known}")
    found = docs if args.suite == DOCS else registry.find(args.suite)
    parser = Parser(prog=f"outlay bench {args.suite}", description=f"{WHAT[args.suite]}.")
    found.add_arguments(parser)
    return int(found.run(parser.parse_args(args.rest)))
