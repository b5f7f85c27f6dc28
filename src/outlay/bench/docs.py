"""`outlay bench docs`: the tables of the documentation, made from the results in `benchmarks/results`.

A table stands between `<!-- table RESULT NAME -->` and `<!-- end of table -->`: RESULT is a file of results without its
`.json`. It was made by the suite whose name it begins with, and NAME is one of that suite's tables.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from outlay import compare
from outlay.bench import registry
from outlay.errors import FailureError, UsageError
from outlay.scaling import report as plan

SUMMARY = "Renews the tables of the documentation from the results in benchmarks/results"
COMMANDS = {"compare": compare.TABLES, "plan": plan.TABLES}
"""Tables of results that a command wrote which is no suite."""
MARK = re.compile(r"(<!-- table (?P<result>[\w-]+) (?P<table>[\w-]+) -->\n).*?(?=<!-- end of table -->)", re.DOTALL)
MADE = re.compile(r"<!-- table .*?<!-- end of table -->", re.DOTALL)
FIGURE = re.compile(r"\W*-?\d+(\.\d+)?\s?(x|%|ms|s|MB|GB|GB/s|tok/s)?\W*")
REPORTS = ("$ outlay bench", "$ outlay compare")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help="the repository (here)")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where one is not its result's")


def run(args: argparse.Namespace) -> int:
    """Renews every table, or says which are not what their results give; returns the exit status."""
    pages = sorted([*args.folder.glob("README.md"), *(args.folder / "docs").rglob("*.md")])
    if not pages:
        raise UsageError(f"there is no documentation in {args.folder.resolve()}; name the repository with --folder DIR")
    wrong = []
    for page in pages:
        text = page.read_text()
        fresh = renewed(text, args.folder / "benchmarks" / "results")
        wrong += [f"{page}: line {line} has a figure that is not from a result" for line in strays(text)]
        if fresh != text and args.check:
            wrong.append(f"{page}: a table is not what its result gives; run `outlay bench docs`")
        elif fresh != text:
            page.write_text(fresh)
            print(f"renewed the tables of {page}")
    for remark in wrong:
        print(remark)
    return 1 if wrong else 0


def renewed(text: str, results: Path) -> str:
    """Returns a page with every table made anew. Raises `FailureError` for a result or a table that is not there."""

    def made(mark: re.Match[str]) -> str:
        file = results / f"{mark['result']}.json"
        if not file.is_file():
            raise FailureError(f"there is no result {file}")
        source = mark["result"].partition("-")[0]
        tables = COMMANDS.get(source) or registry.tables(source)
        if mark["table"] not in tables:
            raise FailureError(f"{mark['result']} has no table {mark['table']!r}; it has {', '.join(tables)}")
        return f"{mark[1]}{tables[mark['table']](json.loads(file.read_text()))}\n"

    return MARK.sub(made, text)


def strays(text: str) -> Iterator[int]:
    """Yields the numbers of lines that show measured figures outside of a made table.

    These are rows with a cell that is nothing but a number, and the output of a benchmark.
    """
    plain = MADE.sub(lambda made: "\n" * made[0].count("\n"), text)
    for number, line in enumerate(plain.splitlines(), 1):
        cells = line.strip().strip("|").split("|") if line.lstrip().startswith("|") else []
        if any(FIGURE.fullmatch(cell.strip()) for cell in cells[1:]) or line.startswith(REPORTS):
            yield number
