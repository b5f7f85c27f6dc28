"""`outlay bench detect`: AP, time and repetitions of detectors by layers, and the winner of a budget measured again."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from outlay.bench.detect.report import report
from outlay.bench.suite import Suite
from outlay.budget import Budget
from outlay.errors import FailureError, UsageError
from outlay.progress import ShowProgress
from outlay.vision.detect import load
from outlay.vision.detect.choose import choose, grades, priced_ways
from outlay.vision.detect.datasets import Dataset, read_dataset
from outlay.vision.detect.evaluate import repeated_share
from outlay.vision.detect.ways import CAPPED, Options

USUAL = ("outlay/digits-atto=digits",)
BUDGET_SHARE = 0.7
"""Of the time of the dearest way: the budget that is chosen within."""


@dataclass(frozen=True)
class DetectSettings:
    """What is measured."""

    pairs: tuple[tuple[str, str], ...]
    """Detectors, each with its pictures."""
    limit: int | None


class DetectSuite(Suite[DetectSettings]):
    """Layers, time, repetitions and a choice, for each detector."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """As `Suite.add_arguments`: detectors and pictures in place of a model."""
        parser.add_argument("--pairs", nargs="+", default=USUAL, metavar="M=DATA", help="detectors with their pictures "
                            "(outlay/digits-atto=digits)")  # fmt: skip
        parser.add_argument("--limit", type=int, default=None, metavar="N", help="the first N pictures of each (all)")
        parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write everything measured as JSON")

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """All options are its own."""

    def settings(self, args: argparse.Namespace) -> DetectSettings:
        """Returns what the options ask for. Raises `UsageError` for a pair that is none."""
        pairs = tuple(tuple(pair.split("=", 1)) for pair in args.pairs)
        wrong = next((pair for pair in pairs if len(pair) != 2), None)
        if wrong is not None:
            raise UsageError(f"--pairs are DETECTOR=PICTURES, such as {USUAL[0]}, not {wrong[0]!r}")
        return DetectSettings(pairs, args.limit)

    def path(self, args: argparse.Namespace) -> Path:
        """Returns what is measured, for the heading."""
        return Path(args.pairs[0].partition("=")[0])

    def measure(self, settings: DetectSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns a row for each detector and layer, its repetitions, and a choice within a budget."""
        torch.set_num_threads(1)
        return {"detectors": [_measured(name, data, settings.limit, progress) for name, data in settings.pairs]}

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)


def _measured(name: str, source: str, limit: int | None, progress: ShowProgress) -> dict[str, Any]:
    loaded, data = load(name).deployed(), read_dataset(source)
    if limit is not None:
        data = replace(data, examples=list(data.examples[:limit]))
    queries = loaded.detector.size.queries
    layers = range(1, loaded.detector.size.layers + 1)
    scores = grades(loaded, data, [(deep, queries) for deep in layers], progress=progress)
    options = Options(queries=(queries,), sides=(loaded.side,), threads=(1,), dtypes=("float32",))
    ways = priced_ways({name: loaded}, data.examples[0].pixels(), options, progress)
    rows = []
    for each in sorted(ways, key=lambda each: each.way.layers):
        score = scores[(each.way.layers, queries)]
        costs = {entry: each.ledger.amount(entry) for entry in CAPPED}
        rows.append({"layers": each.way.layers, "score": score.as_dict(), "costs": costs})
    return {
        "name": name, "data": Path(data.source).name, "pictures": len(data.examples), "side": loaded.side,
        "queries": queries, "layers": rows, "repeated": repeated_share(loaded, data),
        "choice": _choice(name, loaded, data, rows, progress),
    }  # fmt: skip


def _choice(
    name: str, loaded: Any, data: Dataset, rows: list[dict[str, Any]], progress: ShowProgress
) -> dict[str, Any]:
    cap = BUDGET_SHARE * rows[-1]["costs"]["seconds"]
    few = replace(data, examples=list(data.examples[:20]))
    try:
        found = choose({name: loaded}, few, Budget(seconds=cap), Options(threads=(1,)), progress=progress)
    except FailureError as error:
        return {"budget": cap, "error": str(error)}
    assert found.again is not None
    return {
        "budget": cap, "command": found.winner.way.command(), "predicted": found.winner.ledger.seconds,
        "again": found.again.seconds, "away": found.away, "dropped": len(found.dropped),
    }  # fmt: skip


SUITE = DetectSuite()
