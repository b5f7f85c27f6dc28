"""A comparison spread over processes with Ray Data; run where Ray is installed (`pip install 'outlay[ray]'`)."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest

pytest.importorskip("ray.data")

from outlay.compare import cluster
from outlay.compare.declaration import Declaration
from outlay.compare.items import read_items
from outlay.compare.session import compare
from outlay.compare.texts import TextComparison


@pytest.fixture
def declaration():
    methods = ("greedy", "sample:temperature=0.9", "best_of:temperature=0.9,n=2")
    return Declaration(methods, "outlay/tiny-reasoner", max_tokens=6, repeats=1, threads=1, metric="number")


def test_workers_write_what_one_process_writes_and_a_lost_one_costs_only_its_shard(declaration, tmp_path, monkeypatch):
    items, _ = read_items("arithmetic:count=6")
    comparison, log = TextComparison(declaration, items, "arithmetic"), tmp_path / "log"

    class Mortal(cluster.ShardWorker):
        """Dies once, in the middle of a shard."""

        def __call__(self, row):
            number = json.loads(row["pending"])["shard"]["number"]
            lost = number == 2 and not log.with_name("lost").exists()
            with log.open("a") as file:
                file.write(f"{number}\n")
            if lost:
                log.with_name("lost").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(row)

    alone = compare(comparison, tmp_path / "alone")
    monkeypatch.setattr(cluster, "ShardWorker", Mortal)
    spread = compare(replace(comparison, workers=2), tmp_path / "spread")
    assert spread["texts"] == alone["texts"]
    assert spread["runs"] == alone["runs"]
    assert [row["errors"] for row in spread["contenders"]] == [0, 0, 0]
    tried = sorted(map(int, log.read_text().split()))
    assert tried == [0, 1, 2, 2, 3, 4, 5]
    assert len((tmp_path / "spread" / "runs.jsonl").read_text().splitlines()) == 18
