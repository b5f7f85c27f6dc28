"""Spreads the shards of a comparison over a cluster with Ray Data (`pip install 'outlay[ray]'`).

Every worker is a process with a model of its own. One worker does a whole shard, in which all contenders answer the
same prompts in turn, so what is compared was measured on one machine. Where a worker is lost, Ray gives its shard to
another.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from outlay.compare.declaration import Declaration
from outlay.compare.items import Item
from outlay.compare.prepare import Prepared, prepare
from outlay.compare.turns import Pending, Rows, Shard
from outlay.errors import FailureError, UsageError


def require() -> None:
    """Raises `UsageError` where Ray Data is not installed."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise UsageError("--ray needs Ray Data: pip install 'outlay[ray]'")


class ShardWorker:
    """Answers shards in a process of its own; Ray calls it with one at a time."""

    def __init__(self, declaration: Mapping[str, Any], items: Sequence[Item], fingerprint: str) -> None:
        prepared = prepare(Declaration.from_dict(declaration), items)
        if prepared.lm.model.fingerprint != fingerprint:
            raise FailureError(f"a worker found another model under the name {declaration['model']}")
        self._runner = prepared.runner()

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the rows of one shard, as JSON in the column `turns`."""
        pending = json.loads(row["pending"])
        shard = Shard(**pending["shard"] | {"items": tuple(pending["shard"]["items"])})
        done = {(contender, item) for contender, item in pending["done"]}
        return {"turns": json.dumps(list(self._runner.run(shard, done)))}


def run_on_ray(prepared: Prepared, workers: int, pending: Sequence[Pending]) -> Iterator[Rows]:
    """Yields the rows of each turn as shards are finished, in any order.

    Args:
        prepared: the model and the contenders.
        workers: how many processes; 0 for one a core.
        pending: what is to be run.

    Raises:
        FailureError: the cluster can't do the work.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of how Ray Data itself starts actors
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        threads = prepared.declaration.threads or 1
        size = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        given = (prepared.declaration.as_dict() | {"threads": threads}, list(prepared.items))
        answers = ray.data.from_items([_written(*each) for each in pending], override_num_blocks=len(pending)).map(
            ShardWorker,
            fn_constructor_args=(*given, prepared.lm.model.fingerprint),
            compute=ActorPoolStrategy(size=min(size, len(pending))),
            num_cpus=threads,
        )
        for answer in answers.iter_rows():
            yield from json.loads(answer["turns"])
    except ray.exceptions.RayError as error:
        raise FailureError(f"the cluster failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if started:
            ray.shutdown()


def _written(shard: Shard, done: set[tuple[int, int]]) -> dict[str, str]:
    return {"pending": json.dumps({"shard": asdict(shard), "done": sorted(done)})}
