"""A whole comparison: tries every contender, runs shard by shard, rates the answers, sums up, and writes.

What the items are, and how an answer is made, scored and shown, is the comparison's own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from outlay.compare import folder, plots
from outlay.compare.comparison import Answers, Comparison, Key
from outlay.compare.journal import Journal
from outlay.compare.results import summed_up
from outlay.compare.table_file import write_csv
from outlay.compare.turns import Pending, Plan, Rows, Shard, shards
from outlay.progress import ShowProgress, silent
from outlay.viewer.report import write_report

RunShards = Callable[[Sequence[Pending]], Iterator[Rows]]


def compare(
    comparison: Comparison, out: Path, *, command: Sequence[str] = (), progress: ShowProgress = silent
) -> dict[str, Any]:
    """Runs a comparison, or goes on with one that was stopped.

    What was done before an error stays in the folder, and the same call goes on from there.

    Args:
        comparison: what is compared, on which items.
        out: the folder for all that comes out.
        command: the command line, for the manifest.
        progress: is told how far the work is.

    Returns:
        The results, as `results.json` has them.

    Raises:
        UsageError: the comparison can't be run, or the folder can't be used.
        FailureError: something failed.
    """
    comparison.check()
    with folder.locked(out):
        ready = comparison.prepare(progress)
        folder.join(out, ready.manifest(command), ready.written())
        run_shards(out, ready.plan, ready.keys, ready.count, ready.run, progress)
        ready.finish(out, progress)
        return write_results(out, ready.answers(out))


def run_shards(out: Path, plan: Plan, keys: Sequence[Key], items: int, work: RunShards, progress: ShowProgress) -> None:
    """Does the runs that the journal lacks, each turn written when it is done.

    Args:
        out: the folder of the journal.
        plan: how often each item is answered.
        keys: the contenders.
        items: how many items there are.
        work: runs shards.
        progress: is told how far the work is.
    """
    index_of = {key: index for index, key in enumerate(keys)}
    with closing(Journal(out / folder.RUNS)) as journal:
        done: dict[tuple[int, int], set[tuple[int, int]]] = {}
        for method, budget, item, seed, repeat in journal.done:
            done.setdefault((repeat, seed), set()).add((index_of[method, budget], item))
        pending = [(shard, _part(done.get((shard.repeat, shard.seed), set()), shard)) for shard in shards(plan, items)]
        pending = [(shard, ran) for shard, ran in pending if len(ran) < len(keys) * len(shard.items)]

        total = len(keys) * items * len(plan.seeds) * plan.repeats
        before, started = len(journal.done), time.monotonic()
        progress(f"run {before} of {total}", before, total)
        for rows in work(pending) if pending else ():
            journal.add(rows)
            left = (time.monotonic() - started) / max(1, len(journal.done) - before) * (total - len(journal.done))
            progress(f"run {len(journal.done)} of {total}, {_duration(left)} left", len(journal.done), total)


def write_results(out: Path, answers: Answers) -> dict[str, Any]:
    """Writes all that is derived from what was run, and returns it."""
    found, display = summed_up(out, answers), answers.display
    folder.write(out / folder.RESULTS, json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n")
    write_csv(out)
    write_report(found, out / folder.REPORT, display.page)
    if plots.available():
        speed = display.page.speed
        plots.write_plots(found, out, display.costs, (speed.entry, speed.told))
    return found


def _part(done: set[tuple[int, int]], shard: Shard) -> set[tuple[int, int]]:
    return {(contender, item) for contender, item in done if item in shard.items}


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
