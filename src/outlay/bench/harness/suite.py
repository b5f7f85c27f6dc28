"""`outlay bench harness`: bare runs beside `outlay compare`, and the model types of `lm_eval` beside each other."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay.bench.data import DATA
from outlay.bench.harness.evaluators import Evaluate, Evaluator, HfType, OutlayType
from outlay.bench.harness.report import report
from outlay.bench.interleave import interleave
from outlay.bench.options import refuse_below_one
from outlay.bench.suite import Suite
from outlay.compare.declaration import Declaration
from outlay.compare.folder import join
from outlay.compare.items import read_items, written
from outlay.compare.manifest import describe
from outlay.compare.prepare import Prepared, prepare
from outlay.compare.session import run_shards, write_results
from outlay.compare.sweep import split_methods
from outlay.compare.texts import TextAnswers
from outlay.compare.turns import Pending, Rows, turns
from outlay.progress import ShowProgress

METHODS = (
    "greedy,auto,lookup,aded,speculative,rsd,spectr,beam:width=4,best_of:n=2,temperature=0.8,sample:temperature=0.8"
)
EVALUATED = ("story_choices", "story_letters", "story_texts", "story_answers")
TASK_LIMIT = 900.0  # seconds


@dataclass(frozen=True)
class HarnessSettings:
    """How much is compared and evaluated."""

    methods: str
    """What `outlay compare` compares, as its option takes it."""
    prompts: str
    """A file of prompts, or a generated set of problems."""
    count: int
    """Prompts that are compared."""
    new: int
    """Tokens of an answer at most."""
    threads: int
    docs: int
    """Documents of each task of `lm_eval`."""
    rounds: int
    """Rounds of `lm_eval`, after a warm-up."""


class HarnessSuite(Suite[HarnessSettings]):
    """The overhead of a comparison, and the throughput of an evaluation."""

    packages = ("outlay", "torch", "transformers", "lm_eval")

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        shown = "(%(default)s)"
        parser.add_argument("--methods", default=METHODS, metavar="A,B", help=f"what is compared {shown}")
        parser.add_argument(
            "--prompts", default=str(DATA / "varied.jsonl"), metavar="FILE",
            help="prompts, or a generated set of problems (varied.jsonl)",
        )  # fmt: skip
        parser.add_argument("--count", type=int, default=24, metavar="N", help=f"of the prompts {shown}")
        parser.add_argument("--new", type=int, default=64, metavar="N", help=f"tokens of an answer {shown}")
        parser.add_argument("--threads", type=int, default=2, metavar="N", help=shown)
        parser.add_argument("--docs", type=int, default=10, metavar="N", help=f"documents of a task of lm_eval {shown}")
        parser.add_argument("--rounds", type=int, default=2, metavar="N", help=f"of lm_eval, after a warm-up {shown}")

    def settings(self, args: argparse.Namespace) -> HarnessSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        refuse_below_one(args, "count", "new", "threads", "docs", "rounds")
        return HarnessSettings(args.methods, args.prompts, args.count, args.new, args.threads, args.docs, args.rounds)

    def measure(self, settings: HarnessSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns the seconds of a comparison, and the documents a second of each model type."""
        return {
            "settings": {name: value for name, value in asdict(settings).items() if name != "prompts"},
            "overhead": overhead(settings, str(model), progress),
            "lm_eval": evaluated(settings, model, progress),
        }

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)


def overhead(settings: HarnessSettings, model: str, progress: ShowProgress) -> dict[str, Any]:
    """Times bare runs and the same runs by `outlay compare`, in turn.

    Returns:
        The seconds of each prompt as `bare` and as `compared`, and those of summing up and the report, `summing_up`.
    """
    items, _ = read_items(settings.prompts)
    declaration = Declaration(
        methods=tuple(split_methods(settings.methods)), model=model, threads=settings.threads, repeats=1,
        max_tokens=settings.new,
    )  # fmt: skip
    prepared = prepare(declaration, items[: settings.count], progress)
    timed = _Timed(prepared)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        join(out, describe(prepared, settings.prompts, None, (), None), written(prepared.items))
        run_shards(
            out, declaration, prepared.keys, len(prepared.items), timed.work,
            lambda _, done, total: progress("comparing", done, total),
        )  # fmt: skip
        started = time.perf_counter()
        write_results(out, TextAnswers(out, prepared.items))
        summing = time.perf_counter() - started
    return {"bare": timed.bare, "compared": timed.compared, "summing_up": summing}


class _Timed:
    """Runs shards as `outlay compare` does, and each again without it, in an order that changes with every shard."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared, self._runner = prepared, prepared.runner()
        self.bare: list[float] = []
        self.compared: list[float] = []

    def work(self, pending: Sequence[Pending]) -> Iterator[Rows]:
        """Yields the rows of each turn; while it waits for its next call, they are written to the journal."""
        for shard, done in pending:
            first = shard.number % 2 == 0
            if first:
                self._run_bare(shard.number, shard.items, shard.seed)
            started = time.perf_counter()
            yield from self._runner.run(shard, done)
            self.compared.append(time.perf_counter() - started)
            if not first:
                self._run_bare(shard.number, shard.items, shard.seed)

    def _run_bare(self, number: int, prompts: Sequence[int], seed: int) -> None:
        lm, every = self._prepared.lm, self._prepared.contenders
        started = time.perf_counter()
        for index in turns(len(every), number):
            lm.engine.clear()
            options = every[index].options(self._prepared.declaration)
            for prompt in prompts:
                lm.generate(self._runner.encode(prompt), seed=seed, **options)
        self.bare.append(time.perf_counter() - started)


def evaluated(settings: HarnessSettings, model: Path, progress: ShowProgress) -> list[dict[str, Any]]:
    """Returns a row for each `lm_eval` model type and task.

    A row has the documents a second and the seconds that lm_eval takes besides, an entry a round each, and the median
    of the task's metric.
    """
    tasks = [Evaluate(name, settings.docs, settings.threads) for name in EVALUATED]
    everyone: list[Evaluator] = [
        OutlayType(str(model), "auto"), OutlayType(str(model), "float32"), HfType(model, "float32", 1),
        HfType(model, "float32", 16), HfType(model, "bfloat16", 16),
    ]  # fmt: skip
    measured = interleave(everyone, tasks, settings.rounds, task_limit=TASK_LIMIT, progress=progress)
    return [
        {"name": one.name, "task": task.name, "failure": measured.failures.get(one.name),
         "per_second": measured.series(one.name, task, "per_second"),
         "besides": measured.series(one.name, task, "besides"),
         "value": measured.median(one.name, task, "value")}
        for one in everyone for task in tasks
    ]  # fmt: skip


SUITE = HarnessSuite()
