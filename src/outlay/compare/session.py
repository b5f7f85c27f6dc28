"""A whole comparison: tries every contender, runs shard by shard, rates the texts, sums up, and writes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from outlay.compare import cluster, folder, plots, quality
from outlay.compare.comparison import Comparison
from outlay.compare.items import Item, written
from outlay.compare.journal import Journal
from outlay.compare.manifest import describe, refuse_other_models
from outlay.compare.metrics import metric, refuse_unfit
from outlay.compare.prepare import Prepared, prepare
from outlay.compare.results import summed_up
from outlay.compare.runner import Pending, Rows, Shard, shards
from outlay.compare.table_file import write_csv
from outlay.compare.traces import write_traces
from outlay.progress import ShowProgress, silent
from outlay.viewer.report import write_report

RunShards = Callable[[Sequence[Pending]], Iterator[Rows]]


def compare(
    comparison: Comparison,
    out: Path,
    *,
    command: Sequence[str] = (),
    workers: int | None = None,
    progress: ShowProgress = silent,
) -> dict[str, Any]:
    """Runs a comparison, or goes on with one that was stopped.

    What was done before an error stays in the folder, and the same call goes on from there.

    Args:
        comparison: what is compared, on which prompts.
        out: the folder for all that comes out.
        command: the command line, for the manifest.
        workers: how many processes of a Ray cluster share the runs, 0 for one a core; None runs them here.
        progress: is told how far the work is.

    Returns:
        The results, as `results.json` has them.

    Raises:
        UsageError: the comparison can't be run, or the folder can't be used.
        FailureError: something failed.
    """
    declaration, items = comparison.declaration, comparison.items
    if workers is not None:
        cluster.require()
    rated = metric(declaration.metric) if declaration.metric else None
    if rated is not None:
        refuse_unfit(rated, items)
    with folder.locked(out):
        prepared = prepare(declaration, items, progress)
        manifest = describe(prepared, comparison.source, rated, command, workers)
        refuse_other_models(comparison.repeats, manifest)
        runner = prepared.runner()
        folder.join(out, manifest, written(items))
        work = runner.run_all if workers is None else partial(cluster.run_on_ray, prepared, workers)
        run_shards(prepared, out, work, progress)
        if rated is not None:
            quality.rate(out / folder.RUNS, out / folder.QUALITY, rated, items, prepared.lm, runner.encode, progress)
        if declaration.trace:
            write_traces(out, runner, prepared.contenders, len(items), declaration.seeds[0], progress)
        return write_results(out, items)


def run_shards(prepared: Prepared, out: Path, work: RunShards, progress: ShowProgress) -> None:
    """Does the runs that the journal lacks, each turn written when it is done."""
    declaration, every = prepared.declaration, prepared.contenders
    index_of = {contender.key: index for index, contender in enumerate(every)}
    with closing(Journal(out / folder.RUNS)) as journal:
        done: dict[tuple[int, int], set[tuple[int, int]]] = {}
        for method, budget, prompt, seed, repeat in journal.done:
            done.setdefault((repeat, seed), set()).add((index_of[method, budget], prompt))
        pending = [
            (shard, _part(done.get((shard.repeat, shard.seed), set()), shard))
            for shard in shards(declaration, len(prepared.items))
        ]
        pending = [(shard, ran) for shard, ran in pending if len(ran) < len(every) * len(shard.prompts)]

        total = len(every) * len(prepared.items) * len(declaration.seeds) * declaration.repeats
        before, started = len(journal.done), time.monotonic()
        progress(f"run {before} of {total}", before, total)
        for rows in work(pending) if pending else ():
            journal.add(rows)
            left = (time.monotonic() - started) / max(1, len(journal.done) - before) * (total - len(journal.done))
            progress(f"run {len(journal.done)} of {total}, {_duration(left)} left", len(journal.done), total)


def write_results(out: Path, items: Sequence[Item]) -> dict[str, Any]:
    """Writes all that is derived from what was run, and returns it."""
    found = summed_up(out, items)
    folder.write(out / folder.RESULTS, json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n")
    write_csv(out)
    write_report(found, out / folder.REPORT)
    if plots.available():
        plots.write_plots(found, out)
    return found


def _part(done: set[tuple[int, int]], shard: Shard) -> set[tuple[int, int]]:
    return {(contender, prompt) for contender, prompt in done if prompt in shard.prompts}


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
