"""`outlay trace`: turns the trace of a run into a page to look at."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from outlay.errors import UsageError

DESCRIPTION = "Turns a trace into one HTML page: the tree, the passes, the cache and the text. Prints where it lies."
EXAMPLES = """examples:
  outlay run "Why is the sky blue?" --method beam --trace run.jsonl
  outlay trace run.jsonl
  outlay trace run.jsonl -o page.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("file", metavar="FILE", help="a trace that `outlay run --trace FILE` wrote")
    parser.add_argument("-o", "--out", metavar="OUT.html", help="where the page goes (default: beside the trace)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from outlay.viewer.trace_page import write_trace_page

    trace = Path(args.file)
    page = Path(args.out) if args.out else trace.with_suffix(".html")
    if page.resolve() == trace.resolve():
        raise UsageError(f"the page would take the place of the trace {trace}; name another with --out")
    content = write_trace_page(trace, page)
    if content.cut is not None:
        print(f"outlay: line {content.cut} of {trace} is broken off; the page shows what is before it", file=sys.stderr)
    print(page)
    return 0
