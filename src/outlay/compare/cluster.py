"""Spreads the pieces of a comparison over a cluster with Ray Data (`pip install 'outlay[ray]'`).

Every worker is a process with a model of its own. A piece, in which all contenders answer the same prompts in turn, is
done by one worker, so what is compared was measured on one machine. Ray gives a piece whose worker was lost to another.
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
from outlay.compare.runner import Piece, Rows, Todo
from outlay.errors import FailureError, UsageError


def require() -> None:
    """Raises `UsageError` where Ray Data is not installed."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise UsageError("--ray needs Ray Data: pip install 'outlay[ray]'")


class Worker:
    """Answers pieces in a process of its own; what Ray calls with one piece at a time."""

    def __init__(self, declaration: Mapping[str, Any], items: Sequence[Item], fingerprint: str) -> None:
        prepared = prepare(Declaration.from_dict(declaration), items)
        if prepared.lm.model.fingerprint != fingerprint:
            raise FailureError(f"a worker found another model under the name {declaration['model']}")
        self._runner = prepared.runner()

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the rows of one piece, as JSON in the column `turns`."""
        asked = json.loads(row["piece"])
        piece = Piece(**asked["piece"] | {"prompts": tuple(asked["piece"]["prompts"])})
        done = {(contender, prompt) for contender, prompt in asked["done"]}
        return {"turns": json.dumps(list(self._runner.run(piece, done)))}


def run_on_ray(prepared: Prepared, workers: int, todo: Sequence[Todo]) -> Iterator[Rows]:
    """Yields the rows of each turn as pieces are finished, in any order, from `workers` processes (0: one a core).

    Raises `FailureError` where the cluster can't do the work.
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
        answers = ray.data.from_items([_written(*each) for each in todo], override_num_blocks=len(todo)).map(
            Worker,
            fn_constructor_args=(*given, prepared.lm.model.fingerprint),
            compute=ActorPoolStrategy(size=min(size, len(todo))),
            num_cpus=threads,
        )
        for answer in answers.iter_rows():
            yield from json.loads(answer["turns"])
    except ray.exceptions.RayError as error:
        raise FailureError(f"the cluster failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if started:
            ray.shutdown()


def _written(piece: Piece, done: set[tuple[int, int]]) -> dict[str, str]:
    return {"piece": json.dumps({"piece": asdict(piece), "done": sorted(done)})}
