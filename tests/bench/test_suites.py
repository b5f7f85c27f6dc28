"""What holds for every suite, and which package may import which."""

from __future__ import annotations

import ast
import json
import re
from argparse import ArgumentParser
from pathlib import Path

import pytest

from outlay.bench import registry
from outlay.bench.suite import Suite

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "outlay"
RESULTS = ROOT / "benchmarks" / "results"


def imports(package):
    """The modules of `outlay` that a package, or a module of that name, imports anywhere in it."""
    files = sorted((SOURCE / package).rglob("*.py")) or [SOURCE / f"{package}.py"]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)


@pytest.mark.parametrize(
    ("package", "above"),
    [
        ("compare", ["bench", "cli"]),
        ("viewer", ["bench", "cli", "compare"]),
        ("bench", ["cli"]),
        *(
            (package, ["bench", "cli", "compare", "viewer"])
            for package in ("problems", "machine", "spread", "tables", "score")
        ),
    ],
)
def test_imports_point_one_way(package, above):
    found = list(imports(package))
    assert found
    assert [name for name in found if name.startswith(tuple(f"outlay.{each}" for each in above))] == []


def test_every_folder_is_a_suite_that_says_what_it_measures():
    assert list(registry.summaries()) == [
        "accuracy", "arch", "batching", "bits", "cache", "codec", "coupling", "detect", "diffusion", "drafts",
        "encoders", "harness", "hydragen", "parallel", "pictures", "search", "serve", "shrink", "sparse", "speculation",
        "speed", "steer", "vision",
    ]  # fmt: skip
    assert all(summary and "\n" not in summary for summary in registry.summaries().values())


@pytest.mark.parametrize("name", registry.summaries())
def test_a_suite_has_options_settings_and_tables(name):
    suite = registry.find(name)
    assert isinstance(suite, Suite)
    parser = ArgumentParser()
    suite.add_arguments(parser)
    assert suite.settings(parser.parse_args([])) is not None


TABLE = re.compile(r"<!-- table (?P<result>[\w-]+) (?P<name>[\w-]+) -->")


def result_of(suite, table):
    """What a table of the documentation is made of: the result that a page names, else the suite's own."""
    pages = [*RESULTS.parents[1].glob("docs/**/*.md"), RESULTS.parents[1] / "README.md"]
    marks = {mark["name"]: mark["result"] for page in pages for mark in TABLE.finditer(page.read_text())
             if mark["result"].partition("-")[0] == suite}  # fmt: skip
    return json.loads((RESULTS / f"{marks.get(table, suite)}.json").read_text())


@pytest.mark.parametrize("name", registry.summaries())
def test_a_report_is_made_of_the_results_alone(name):
    found = json.loads((RESULTS / f"{name}.json").read_text())
    assert found["machine"]["model"] in registry.find(name).report(found)
    assert registry.find(name).failure(found) is None
    for key, table in registry.tables(name).items():
        assert table(result_of(name, key)).strip()


@pytest.mark.parametrize("name", registry.summaries())
def test_a_report_says_what_was_measured_and_no_goal(name):
    for key, table in registry.tables(name).items():
        text = table(result_of(name, key)).lower()
        assert not any(word in text for word in ("goal", "wanted", "not met", "or more", "or less"))
