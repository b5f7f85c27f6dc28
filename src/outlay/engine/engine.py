"""The engine: takes submissions, and runs them on one thread over the workers of their models.

The thread is started when there is work, and ends when there has been none for a while. Runs are handed in
and their text handed out under locks, so any number of threads and event loops can use one engine.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from outlay.engine.handle import Handle
from outlay.engine.loop import RunLoop, Waiting
from outlay.engine.method import Method, refuse_misfit
from outlay.engine.registry import Workers
from outlay.engine.request import Worker
from outlay.engine.session import Session
from outlay.engine.submission import Submission
from outlay.engine.trace import Trace
from outlay.engine.worker import ModelWorker, Role
from outlay.models.load import Model

LINGER = 5.0  # seconds that the idle thread waits for more work before it ends
_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """An interpreter that ends while the thread is inside torch aborts the process, so the thread has to end before."""
    for engine in list(_ENGINES):
        engine.close()


class Engine:
    """Runs methods over models. `max_runs` are worked on at a time; those that come later wait their turn.

    `kv_dtype` is how keys and values are held: a float dtype or int8; None: as the model's activations.
    """

    def __init__(
        self,
        *,
        cache_tokens: int | None = None,
        prefix_cache: bool = True,
        max_runs: int = 64,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        self._cache_tokens, self._prefix_cache, self._max_runs = cache_tokens, prefix_cache, max_runs
        self._kv_dtype = kv_dtype
        self._lock = threading.Condition()  # guards the queue and the thread; never held during a tick
        self._ticking = threading.Lock()
        self._queue: list[Waiting] = []
        self._thread: threading.Thread | None = None
        self._closing = False
        self._awake = False  # something may have changed for runs that wait for jobs
        _ENGINES.add(self)
        self._workers = Workers(self._employ, self._wake)
        self._runs = RunLoop(self._workers)

    @property
    def workers(self) -> list[Worker]:
        """All that is at work: the models first, then the services."""
        return [*self._workers.models, *self._workers.services]

    @property
    def models(self) -> list[ModelWorker]:
        """The models at work, as targets, as drafts and in other roles."""
        return self._workers.models

    def submit(
        self, method: Method, submission: Submission, *, trace: Callable[[dict[str, Any]], None] | None = None
    ) -> Handle:
        """Hands in a prompt for a method and returns its handle at once.

        Args:
            method: How to decode.
            submission: The model, the prompt and the options.
            trace: Called with each event of the run.

        Raises:
            UsageError: Where the submission doesn't fit the method.
        """
        refuse_misfit(method.about, submission)
        method.check(submission)
        handle = Handle(self._wake)
        tracer = Trace(trace, submission.model.tokenizer) if trace is not None else None
        session = Session(submission, handle.add, tracer)
        with self._lock:
            self._queue.append(Waiting(method, session, handle))
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="outlay-engine", daemon=True)
                self._thread.start()
            self._lock.notify()
        return handle

    def together(self) -> AbstractContextManager[bool]:
        """A context in which the engine admits nothing, so that all that is submitted in it starts in the same tick."""
        return self._lock

    def worker(self, model: Model, role: Role = "target") -> ModelWorker:
        """Returns the worker that runs `model` as "target", "draft", "score" or "side"."""
        return self._workers.model(model, role)

    def close(self) -> None:
        """Cancels what is running, waits until the engine's thread has ended, and closes its services.

        The engine can be used again.
        """
        with self._lock:
            self._closing, thread = True, self._thread
            for handle in [*(each.handle for each in self._queue), *(each.handle for each in self._runs.live)]:
                handle.cancel()
            self._lock.notify_all()
        if thread is not None:
            thread.join()
        with self._ticking:
            self._workers.close()
        self._closing = False

    def clear(self, *, learned: bool = True) -> None:
        """Forgets the prefixes kept for reuse, and what methods have learned. What running requests hold stays."""
        with self._ticking:
            for worker in self._workers.models:
                if learned:
                    worker.shared_state.clear()
                if worker.prefixes is not None:
                    worker.prefixes.clear()

    def _employ(self, model: Model, role: Role) -> ModelWorker:
        return ModelWorker(
            model,
            role=role,
            cache_tokens=self._cache_tokens,
            prefix_cache=self._prefix_cache,
            kv_dtype=self._kv_dtype,
        )

    def _wake(self) -> None:
        """Wakes the thread where all runs wait for jobs: a job has ended, or a run was cancelled."""
        with self._lock:
            self._awake = True
            self._lock.notify_all()

    @property
    def _can_admit(self) -> bool:
        return bool(self._queue) and len(self._runs.live) < self._max_runs

    @torch.inference_mode()
    def _loop(self) -> None:
        while True:
            with self._lock:
                if not self._runs.live and not self._queue:
                    self._lock.wait_for(lambda: bool(self._queue) or self._closing, timeout=LINGER)
                if not self._runs.live and not self._queue:
                    self._thread = None
                    return
                if self._runs.wait_for_jobs:
                    self._lock.wait_for(lambda: self._awake or self._can_admit, timeout=self._runs.seconds_left())
                self._awake = False
                room = self._max_runs - len(self._runs.live)
                admitted, self._queue = self._queue[:room], self._queue[room:]
            with self._ticking:
                try:
                    self._runs.tick(admitted)
                except Exception as failure:  # a mistake of ours: whoever waits must hear of it
                    self._runs.fail(admitted, failure)
