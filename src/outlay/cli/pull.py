"""`outlay pull`: fetches a model, so that the first run need not."""

from __future__ import annotations

import argparse

from outlay.cli import terminal

DESCRIPTION = "Fetches a model unless it is there already, checks its hash, and prints where it lies."
EXAMPLES = """examples:
  outlay pull smollm2-135m
  outlay run "Hello" --model "$(outlay pull smollm2-135m)"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("model", metavar="MODEL", help="an alias (`outlay models` lists them) or a hub id")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from outlay.models import hub

    with terminal.Progress(quiet=args.quiet) as progress:
        path = hub.resolve(args.model, progress)
    print(path)
    return 0
