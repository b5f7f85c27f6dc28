"""`outlay bench parallel`: ParallelBench (Kang et al. 2025, arXiv 2510.04767), its theory and its tasks."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean
from typing import Any

from outlay.bench.options import check_folder_of, refuse_below_one
from outlay.bench.parallel import analytic, grid, puzzles, waiting_line, writing
from outlay.bench.parallel.plot import write_curves
from outlay.bench.parallel.report import report
from outlay.bench.parallel.samples import Sample, Task
from outlay.bench.suite import Suite
from outlay.budget import Budget
from outlay.compare import plots
from outlay.engine.handle import Result
from outlay.errors import UsageError, nearest
from outlay.lm import LM, load
from outlay.models import hub
from outlay.problems import lists
from outlay.progress import ShowProgress

TOGETHER = 50  # samples that are decoded side by side; each spends what it spends alone
ITEMS = (lists.SHORTEST, lists.LONGEST)
CSV = (
    "task", "way", "kind", "value", "block", "score", "strict", "passes", "tokens_per_pass", "text_per_pass",
    "unfinished",
)  # fmt: skip


@dataclass(frozen=True)
class ParallelSettings:
    """What is measured."""

    analytic: bool
    """Whether the closed forms are tested, in place of a model."""
    lists: int
    """Answers of each closed form."""
    seed: int
    """Seed of samples and draws."""
    tasks: tuple[Task, ...] = ()
    """The tasks."""
    ways: tuple[grid.Way, ...] = ()
    """The ways of decoding."""
    samples: int = 100
    """Questions of each task."""
    items: tuple[int, int] = ITEMS
    """Items of the lists, from and to."""
    canvas: int | None = None
    """Positions of the canvas; None: the task's."""
    temperature: float = 0.0
    """At which tokens are drawn."""
    passes: int | None = None
    """Passes that a question may take."""
    least: float = 0.8
    """The score from which a way is on the leaderboard."""
    csv: Path | None = None
    """Where all points are written as a table."""
    plot: Path | None = None
    """Where the curves are written as a picture."""


class ParallelSuite(Suite[ParallelSettings]):
    """List tasks, puzzles and sentences, decoded in many ways; or the theory's closed forms against exact denoisers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the suite's options to `parser`; no model is the usual one."""
        super().add_arguments(parser)
        parser.set_defaults(model=None)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        parser.add_argument("--analytic", action="store_true", help="test the closed forms, as without --model")
        parser.add_argument(
            "--lists", type=int, default=20_000, metavar="N", help="answers of a closed form (%(default)s)"
        )
        parser.add_argument("--tasks", nargs="+", default=["letters/*"], metavar="T", help="tasks, * for any: "
                            "letters/*, waiting_line/*, puzzle/*, writing/* (%(default)s)")  # fmt: skip
        parser.add_argument("--grid", nargs="*", default=list(grid.DEFAULT), metavar="KIND:A,B", help="ways to decode, "
                            f"of {', '.join(grid.KINDS)}, each with its values (%(default)s)")  # fmt: skip
        parser.add_argument("--methods", nargs="*", default=[], metavar="M", help="methods by name, beside the grid")
        parser.add_argument("--blocks", nargs="+", default=[grid.ALL], metavar="B", help="positions of a block, or all")
        parser.add_argument("--samples", type=int, default=100, metavar="N", help="questions of a task (%(default)s)")
        parser.add_argument("--items", default="3-6", metavar="A-B", help="items of the lists (%(default)s)")
        parser.add_argument("--canvas", type=int, metavar="N", help="positions of the canvas (the task's)")
        parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="draw tokens (%(default)s)")
        parser.add_argument(
            "--passes", type=int, metavar="N", help="passes that a question may take (as many as need be)"
        )
        parser.add_argument(
            "--least", type=float, default=0.8, metavar="P", help="score for the leaderboard (%(default)s)"
        )
        parser.add_argument("--seed", type=int, default=0, metavar="N", help="fixes samples and draws (%(default)s)")
        parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row for each task and way")
        parser.add_argument("--plot", type=Path, metavar="FILE", help="write scores over tokens a pass as a picture")

    def settings(self, args: argparse.Namespace) -> ParallelSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        refuse_below_one(args, "samples", "lists")
        if args.analytic and args.model is not None:
            raise UsageError("--analytic tests exact denoisers, not a model; leave out --model")
        check_folder_of(args.csv)
        check_folder_of(args.plot)
        if args.plot is not None and not plots.available():
            raise UsageError("--plot needs matplotlib: pip install 'outlay[plots]'")
        if args.model is None:
            if args.csv or args.plot:
                raise UsageError("--csv and --plot are of a model's points: name one that fills masks with --model M")
            return ParallelSettings(True, args.lists, args.seed)
        settings = ParallelSettings(
            False,
            args.lists,
            args.seed,
            _tasks(args.tasks),
            tuple(grid.ways(args.grid, args.methods, args.blocks)),
            args.samples,
            _items(args.items, args.tasks),
            args.canvas,
            args.temperature,
            args.passes,
            args.least,
            args.csv,
            args.plot,
        )
        for task in settings.tasks:
            for way in settings.ways:
                way.method(settings.canvas or task.canvas)
        return settings

    def path(self, args: argparse.Namespace) -> Path:
        """Returns the folder or file of the model; a name where none is measured."""
        return Path("exact denoisers") if args.model is None else hub.resolve(args.model)

    def measure(self, settings: ParallelSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns a row for each closed form, or a point for each way on each task."""
        if settings.analytic:
            return {"lists": settings.lists, "analytic": analytic.measured(settings.lists, settings.seed, progress)}
        lm = load(model)
        found = points(lm, settings, progress)
        canvases = {task.name: settings.canvas or task.canvas for task in settings.tasks}
        if settings.csv is not None:
            with settings.csv.open("w", newline="") as file:
                writer = csv.DictWriter(file, CSV, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(found)
        if settings.plot is not None:
            write_curves(found, settings.plot)
        return {
            "samples": settings.samples,
            "temperature": settings.temperature,
            "least": settings.least,
            "canvases": canvases,
            "points": found,
        }

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)

    def failure(self, found: Mapping[str, Any]) -> str | None:
        """Returns which closed forms are further than 3 standard errors from what was found, if any are."""
        far = [row for row in found.get("analytic", ()) if row["z"] is None or abs(row["z"]) >= 3]
        return f"{len(far)} closed forms are 3 standard errors or more from what was found" if far else None


def tasks() -> list[Task]:
    """Returns all tasks."""
    return [*waiting_line.tasks(), *puzzles.tasks(), *writing.tasks()]


def points(lm: LM, settings: ParallelSettings, progress: ShowProgress) -> list[dict[str, Any]]:
    """Returns a point for each way on each task."""
    found: list[dict[str, Any]] = []
    total = len(settings.tasks) * len(settings.ways)
    for task in settings.tasks:
        canvas = settings.canvas or task.canvas
        samples = task.draw(settings.samples, settings.items, settings.seed)
        check_canvas(lm, task, samples, canvas)
        for way in settings.ways:
            progress(f"{task.name}, {way}", len(found), total)
            results = answers(lm, samples, way.method(canvas), canvas, settings)
            found.append({"task": task.name, "way": str(way), "kind": way.kind, "value": way.value, "block": way.block,
                          **point(samples, results)})  # fmt: skip
    return found


def check_canvas(lm: LM, task: Task, samples: Sequence[Sample], canvas: int) -> None:
    """Raises `UsageError` where an answer is longer than the canvas."""
    needed = max(len(lm.model.tokenizer.encode(sample.answer)) for sample in samples)
    if needed > canvas:
        raise UsageError(f"an answer of {task.name} has {needed} tokens, the canvas {canvas}; give --canvas {needed}")


def answers(lm: LM, samples: Sequence[Sample], method: str, canvas: int, settings: ParallelSettings) -> list[Result]:
    """Returns what a model writes by a method."""
    budget = Budget(target_passes=settings.passes) if settings.passes else Budget()
    handles = []
    results: list[Result] = []
    for number, sample in enumerate(samples):
        seed = settings.seed + number
        handles.append(
            lm.submit(
                sample.prompt,
                method=method,
                max_tokens=canvas,
                temperature=settings.temperature,
                seed=seed,
                budget=budget,
            )
        )
        if len(handles) == TOGETHER or number + 1 == len(samples):
            results += [handle.result() for handle in handles]
            handles.clear()
    return results


def point(samples: Sequence[Sample], results: Sequence[Result]) -> dict[str, Any]:
    """Returns scores and costs of the answers to samples."""
    scores = [sample.score(result.text, False) for sample, result in zip(samples, results, strict=True)]
    strict = [sample.score(result.text, True) for sample, result in zip(samples, results, strict=True)]
    passes = [result.ledger.target_passes for result in results]
    filled = [_filled(result) for result in results]
    return {
        "score": mean(scores),
        "strict": mean(strict),
        "passes": mean(passes),
        "tokens_per_pass": sum(filled) / sum(passes),
        "text_per_pass": sum(len(result.tokens) for result in results) / sum(passes),
        "unfinished": mean(result.finish_reason == "budget" for result in results),
        "scores": scores,
        "passes_of": passes,
    }


def _filled(result: Result) -> int:
    """Returns the positions that were filled; the tokens of a model that writes from left to right."""
    rounds = result.facts.get("filled_in_round")
    return sum(number > 0 for number in rounds) if rounds is not None else len(result.tokens)


def _tasks(patterns: Sequence[str]) -> tuple[Task, ...]:
    known = {task.name: task for task in tasks()}
    found: dict[str, Task] = {}
    for pattern in patterns:
        names = [name for name in known if fnmatchcase(name, pattern)]
        if not names:
            raise UsageError(f"there is no task {pattern!r}{nearest(pattern, known)}; there are {', '.join(known)}")
        found |= {name: known[name] for name in names}
    return tuple(found.values())


def _items(text: str, patterns: Sequence[str]) -> tuple[int, int]:
    low, _, high = text.partition("-")
    bounds = [int(part) for part in (low, high or low) if part.isdecimal()]
    most = len(lists.LETTERS) - 1 if any(task.name.startswith("letters/") for task in _tasks(patterns)) else 100
    if len(bounds) != 2 or not 2 <= bounds[0] <= bounds[1] <= most:
        raise UsageError(f"--items takes two numbers of items from 2 to {most}, as in 3-6, not {text!r}")
    return bounds[0], bounds[1]


SUITE = ParallelSuite()
