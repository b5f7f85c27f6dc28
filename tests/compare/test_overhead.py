"""What the harness itself costs."""

from __future__ import annotations

import json
import time

from outlay.compare.declaration import Declaration
from outlay.compare.items import read_items
from outlay.compare.prepare import prepare
from outlay.compare.session import run_shards


def test_the_harness_takes_at_most_three_percent_of_a_run(default_path, tmp_path):
    """All that is not a method answering, the journal above all, as a share of the whole; one clock, one run."""
    items, _ = read_items("arithmetic:count=8")
    prepared = prepare(Declaration(("greedy",), str(default_path), max_tokens=24, repeats=2, threads=1), items)
    runner = prepared.runner()
    started = time.perf_counter()
    plan = prepared.declaration
    run_shards(tmp_path, plan, prepared.keys, len(items), runner.run_all, lambda phase, done, total: None)
    seconds = time.perf_counter() - started
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    answering = sum(row["ledger"]["tokens_out"] / row["ledger"]["tokens_per_second"] for row in rows)
    assert 0 <= seconds - answering <= 0.03 * answering
