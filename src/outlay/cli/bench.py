"""`outlay bench`: runs one of the benchmarks in `outlay.bench`, each a module with `add_arguments` and `run`."""

from __future__ import annotations

import argparse
from importlib import import_module

from outlay.cli.arguments import Parser
from outlay.errors import UsageError, nearest

SUITES = {
    "accuracy": "what each weight and cache format costs in perplexity, beside the same weights in float32",
    "docs": "renews the tables of the documentation from the results in benchmarks/results",
    "drafts": "how often drafted tokens are taken: by each verifier, by each shape of tree",
    "harness": "what `outlay compare` costs over bare runs, and lm_eval beside its own hf model type",
    "speculation": "what drafting gains on chat, code and summaries, beside other engines, in one run",
    "speed": "tokens a second and the cost of a pass, beside other engines, in one run",
}

DESCRIPTION = "Runs a benchmark and prints its table."
EXAMPLES = "suites:\n" + "\n".join(f"  {name:<11} {what}" for name, what in SUITES.items())
EXAMPLES += "\n\n`outlay bench SUITE --help` shows a suite's options.\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay bench SUITE [...]"
    parser.add_argument("suite", nargs="?", metavar="SUITE", help="which one")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Runs the suite with what follows its name; returns its exit status."""
    known = ", ".join(SUITES)
    if args.suite is None:
        raise UsageError(f"say which suite to run: {known}")
    if args.suite not in SUITES:
        raise UsageError(f"there is no suite {args.suite!r}{nearest(args.suite, SUITES)}; the suites are {known}")
    suite = import_module(f"outlay.bench.{args.suite}")
    parser = Parser(prog=f"outlay bench {args.suite}", description=SUITES[args.suite].capitalize() + ".")
    suite.add_arguments(parser)
    return int(suite.run(parser.parse_args(args.rest)))
