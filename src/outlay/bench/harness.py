"""`outlay bench harness`: what `outlay compare` costs over bare runs, and `lm_eval` beside its own `hf` model type."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from outlay.bench.contenders.evaluators import Evaluate, Evaluator, HfType, OutlayType
from outlay.bench.harness_report import report
from outlay.bench.interleave import interleave
from outlay.bench.machine import describe
from outlay.bench.options import check_folder_of
from outlay.bench.progress import Progress
from outlay.compare.declaration import Declaration
from outlay.compare.folder import join
from outlay.compare.items import read_items, written
from outlay.compare.manifest import describe as manifest_of
from outlay.compare.prepare import Prepared, prepare
from outlay.compare.runner import Rows, Todo, turns
from outlay.compare.session import run_pieces, write_results
from outlay.compare.sweep import split_methods
from outlay.errors import UsageError
from outlay.lm import DEFAULT_MODEL
from outlay.models import hub

ROOT = Path(__file__).parents[3]
VERSIONS = ("outlay", "torch", "transformers", "lm_eval")
METHODS = (
    "greedy,auto,lookup,aded,speculative,rsd,spectr,beam:width=4,best_of:n=2,temperature=0.8,sample:temperature=0.8"
)
TASKS = ("story_choices", "story_letters", "story_texts", "story_answers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the suite's options to `parser`."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help="alias, folder, .gguf file or hub id (%(default)s)")
    parser.add_argument("--methods", default=METHODS, metavar="A,B", help="what is compared (%(default)s)")
    parser.add_argument(
        "--prompts", default=str(ROOT / "benchmarks" / "data" / "varied.jsonl"), metavar="FILE",
        help="prompts, or a generated suite (varied.jsonl)",
    )  # fmt: skip
    parser.add_argument("--count", type=int, default=24, metavar="N", help="of the prompts (%(default)s)")
    parser.add_argument("--new", type=int, default=64, metavar="N", help="tokens of an answer (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--docs", type=int, default=10, metavar="N", help="documents of each task of lm_eval (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="of lm_eval, after a warm-up (%(default)s)")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write everything measured as JSON")


def run(args: argparse.Namespace) -> int:
    """Measures, prints the report, and writes it; returns the exit status."""
    check_folder_of(args.out)
    for name in ("count", "new", "threads", "docs", "rounds"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} must be 1 or more, not {getattr(args, name)}")
    path = hub.resolve(args.model)
    started = time.perf_counter()
    found: dict[str, Any] = {
        "settings": {name: getattr(args, name) for name in ("methods", "count", "new", "threads", "docs", "rounds")},
        "overhead": overhead(args, Progress()),
        "lm_eval": evaluated(args, path, Progress()),
    }
    seconds = round(time.perf_counter() - started, 1)
    found["machine"] = describe(VERSIONS) | {"seconds": seconds, "model": path.name}
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(report(found))
    return 0


def overhead(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Returns the seconds of bare runs and of the same runs by `outlay compare`, prompt by prompt in turn, and what it
    took to sum all up and to write the report."""
    items, _ = read_items(args.prompts)
    declaration = Declaration(
        methods=tuple(split_methods(args.methods)), model=args.model, threads=args.threads, repeats=1,
        max_tokens=args.new,
    )  # fmt: skip
    prepared = prepare(declaration, items[: args.count], progress)
    timed = _Timed(prepared)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        join(out, manifest_of(prepared, args.prompts, None, (), None), written(prepared.items))
        run_pieces(prepared, out, timed.work, lambda _, done, total: progress("comparing", done, total))
        started = time.perf_counter()
        write_results(out, prepared.items)
        summing = time.perf_counter() - started
    return {"bare": timed.bare, "compared": timed.compared, "summing_up": summing}


class _Timed:
    """Runs pieces as `outlay compare` does, and each again without it, in an order that changes with every piece."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared, self._runner = prepared, prepared.runner()
        self.bare: list[float] = []
        self.compared: list[float] = []

    def work(self, todo: Sequence[Todo]) -> Iterator[Rows]:
        """Yields the rows of each turn; while it waits for its next call, they are written to the journal."""
        for piece, done in todo:
            first = piece.number % 2 == 0
            if first:
                self._run_bare(piece.number, piece.prompts, piece.seed)
            started = time.perf_counter()
            yield from self._runner.run(piece, done)
            self.compared.append(time.perf_counter() - started)
            if not first:
                self._run_bare(piece.number, piece.prompts, piece.seed)

    def _run_bare(self, number: int, prompts: Sequence[int], seed: int) -> None:
        lm, every = self._prepared.lm, self._prepared.contenders
        started = time.perf_counter()
        for index in turns(len(every), number):
            lm.engine.clear()
            options = every[index].options(self._prepared.declaration)
            for prompt in prompts:
                lm.generate(self._runner.encode(prompt), seed=seed, **options)
        self.bare.append(time.perf_counter() - started)


def evaluated(args: argparse.Namespace, path: Path, progress: Progress) -> list[dict[str, Any]]:
    """Returns documents a second of each `lm_eval` model type and task, a value a round, and the seconds that lm_eval
    takes besides.
    """
    tasks = [Evaluate(name, args.docs, args.threads) for name in TASKS]
    everyone: list[Evaluator] = [
        OutlayType(args.model, "auto"), OutlayType(args.model, "float32"), HfType(path, "float32", 1),
        HfType(path, "float32", 16), HfType(path, "bfloat16", 16),
    ]  # fmt: skip
    outcome = interleave(everyone, tasks, args.rounds, task_limit=900.0, progress=progress)
    return [
        {"name": contender.name, "task": task.name, "failure": outcome.failures.get(contender.name),
         "per_second": outcome.series(contender.name, task, "per_second"),
         "besides": outcome.series(contender.name, task, "besides"),
         "value": outcome.median(contender.name, task, "value")}
        for contender in everyone for task in tasks
    ]  # fmt: skip
