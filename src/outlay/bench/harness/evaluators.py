"""Model types of `lm_eval`, timed on tasks of local files: ours, and its own `hf`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outlay.bench.data import ROOT, TASKS
from outlay.bench.interleave import Participant, Values
from outlay.bench.peer import peer

REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


@dataclass(frozen=True)
class Evaluate:
    """Evaluates the first `docs` documents of a task in `benchmarks/tasks`."""

    name: str
    docs: int
    threads: int


class Answering:
    """Sums the seconds that a model type takes to answer.

    What lm_eval does before and after, such as asking the system for its versions, is the same for all.
    """

    def __init__(self, lm: Any) -> None:
        self._lm, self.seconds = lm, 0.0

    def __enter__(self) -> Answering:
        for name in REQUESTS:
            setattr(self._lm, name, self._timed(getattr(self._lm, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for name in REQUESTS:
            delattr(self._lm, name)

    def _timed(self, answer: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return answer(*args, **options)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


class Evaluator(Participant):
    """A model type with its arguments; it keeps nothing computed from one task to the next."""

    @property
    def environment(self) -> dict[str, str]:
        """Keeps the package off the hub, since the files are here, and its progress bars off."""
        return {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}

    def load(self) -> dict[str, Any]:
        """Loads the model and finds the tasks."""
        _, version = peer("lm_eval", "lm_eval")
        from lm_eval.tasks import TaskManager

        os.chdir(ROOT)  # the tasks name their files from there
        self._tasks = TaskManager(include_path=str(TASKS), include_defaults=False)
        self._lm = self.make()
        return {"version": version}

    def measure(self, task: Evaluate) -> Values:
        """Returns documents a second while the model type answers (`per_second`), the seconds that lm_eval takes
        `besides`, and the `value` of the task's first metric.
        """
        from lm_eval import simple_evaluate

        self.use(task.threads)
        started = time.perf_counter()
        with Answering(self._lm) as answering:
            found = simple_evaluate(
                self._lm, tasks=[task.name], limit=task.docs, task_manager=self._tasks, bootstrap_iters=0,
                log_samples=False, verbosity="ERROR",
            )  # fmt: skip
        seconds = time.perf_counter() - started
        values = [value for value in found["results"][task.name].values() if isinstance(value, float)]
        besides = seconds - answering.seconds
        return {"per_second": task.docs / answering.seconds, "besides": besides, "value": float(values[0])}

    def make(self) -> Any:
        """Returns the model as lm_eval asks for it."""
        raise NotImplementedError

    def use(self, threads: int) -> None:
        """Computes with this number of threads from now on."""
        torch.set_num_threads(threads)


class OutlayType(Evaluator):
    """`outlay` among lm_eval's model types."""

    def __init__(self, source: str, dtype: str) -> None:
        self.name = "outlay" if dtype == "auto" else f"outlay {dtype}"
        self.source, self.dtype = source, dtype

    def make(self) -> Any:
        """Loads the model."""
        from outlay.compare.lm_eval import OutlayLM

        return OutlayLM(self.source, dtype=self.dtype)

    def use(self, threads: int) -> None:
        """As for all; the kernels' threads too, and an empty cache."""
        from outlay import kernels

        super().use(threads)
        if kernels.available():
            kernels.set_threads(threads)
        self._lm.lm.engine.clear()


class HfType(Evaluator):
    """lm_eval's own `hf`, through transformers."""

    def __init__(self, path: Path, dtype: str, batch: int) -> None:
        self.name = f"hf {dtype}, batch {batch}"
        self.path, self.dtype, self.batch = path, dtype, batch

    def make(self) -> Any:
        """Loads the model."""
        from lm_eval.api.registry import get_model

        folder, file = (self.path.parent, {"gguf_file": self.path.name}) if self.path.is_file() else (self.path, {})
        return get_model("hf").create_from_arg_obj(
            {"pretrained": str(folder), "dtype": self.dtype, **file}, {"batch_size": self.batch, "device": "cpu"}
        )
