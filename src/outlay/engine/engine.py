"""The engine: takes submissions, and runs them on one thread over the workers of their models.

The thread is started when there is work, and ends when there has been none for a while. Runs are handed in
and their text handed out under locks, so any number of threads and event loops can use one engine. What waits is looked
at before each tick: a run that was cancelled, or whose time is over, does not wait for those before it.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from typing import Any

import torch

from outlay.attend.policy import Prompt
from outlay.engine.canvas_run import CanvasRun
from outlay.engine.encode import EncoderOutputs
from outlay.engine.handle import Handle
from outlay.engine.held_prefix import HeldPrefix
from outlay.engine.loop import RunLoop, Waiting, seconds_left
from outlay.engine.method import Method, refuse_misfit
from outlay.engine.registry import Workers
from outlay.engine.request import Worker
from outlay.engine.session import Session
from outlay.engine.submission import Submission
from outlay.engine.trace import Trace
from outlay.engine.tree_run import TreeRun
from outlay.engine.worker import ModelWorker, Role
from outlay.errors import QueueFull, UsageError
from outlay.models.images import placed_in
from outlay.models.load import Model

LINGER = 5.0  # seconds that the idle thread waits for more work before it ends
_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """An interpreter that ends while the thread is inside torch aborts the process, so the thread has to end before."""
    for engine in list(_ENGINES):
        engine.close()


class Engine:
    """Runs methods over models. `max_runs` are worked on at a time; those that come later wait their turn."""

    def __init__(
        self,
        *,
        cache_tokens: int | None = None,
        prefix_cache: bool = True,
        max_runs: int = 64,
        max_waiting: int = 4096,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        """Makes an engine, which starts its thread with the first submission.

        Args:
            cache_tokens: Tokens whose keys and values each model holds at most; None: a context, 16,384 at least.
            prefix_cache: Whether prompts and texts are cached for later requests.
            max_runs: Runs that are worked on at a time.
            max_waiting: Submissions that wait at most; those beyond are refused.
            kv_dtype: How keys and values are held: a float dtype or int8; None: as the model's activations.

        Raises:
            UsageError: For a `max_runs` or `max_waiting` below 1.
        """
        for name, least in (("max_runs", max_runs), ("max_waiting", max_waiting)):
            if least < 1:
                raise UsageError(f"{name} must be 1 or more, not {least}")
        self._cache_tokens, self._prefix_cache, self._max_runs = cache_tokens, prefix_cache, max_runs
        self._max_waiting, self._kv_dtype = max_waiting, kv_dtype
        self._outputs = EncoderOutputs()
        self._lock = threading.Condition()  # guards the queue and the thread; never held during a tick
        self._ticking = threading.Lock()
        self._queue: list[Waiting] = []
        self._thread: threading.Thread | None = None
        self._numbers = count()
        self._closed = self._cancelling = False
        self._settled = True  # nothing runs, and no service has work of its own
        self._spare = False  # a service has work of its own
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
            UsageError: Where the submission doesn't fit the method, or the engine is closed.
            QueueFull: When `max_waiting` submissions wait already.
        """
        refuse_misfit(method, submission)
        if submission.cache is not None:
            submission.cache.check(self._prompt_of(submission))
        self._refuse_too_long(method, submission)
        method.check(submission)
        handle = Handle(self._wake)
        tracer = Trace(trace, submission.model.tokenizer) if trace is not None else None
        session = Session(submission, handle.add, tracer)
        handle.ledger = session.ledger
        with self._lock:
            self._refuse()
            self._settled = False
            self._queue.append(Waiting(method, session, handle, next(self._numbers)))
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

    def close(self, *, drain: bool = False) -> None:
        """Accepts nothing more, ends what was accepted, and returns when the engine's thread has ended.

        The services are closed with it.

        Args:
            drain: Whether what was accepted is finished; else it is cancelled.
        """
        with self._lock:
            self._closed, thread = True, self._thread
            self._cancelling |= not drain
            self._lock.notify_all()
        if thread is not None:
            thread.join()
        with self._ticking:
            self._workers.close()

    def settle(self) -> None:
        """Returns when nothing runs and the services have done their own work, such as measuring what passes cost.

        What is timed afterwards is not disturbed by it.
        """
        with self._lock:
            self._lock.wait_for(lambda: self._settled or self._thread is None)

    def clear(self, *, learned: bool = True) -> None:
        """Forgets the cached prefixes, and what methods have learned. What running requests hold stays."""
        with self._ticking:
            for worker in self._workers.models:
                if learned:
                    worker.shared_state.clear()
                worker.clear()

    def release(self, prefix: HeldPrefix) -> None:
        """Gives up a prefix that is held. What running requests hold of it stays."""
        with self._ticking:
            prefix.release()

    def _prompt_of(self, submission: Submission) -> Prompt:
        """Returns what a cache policy may know before the run starts."""
        decoder, caps = submission.model.decoder, submission.options.budget.caps
        is_text = torch.ones(len(submission.prompt), dtype=torch.bool)
        for start, length, _ in placed_in(submission.prompt):
            is_text[start : start + length] = False
        dtype, most = self._kv_dtype or decoder.dtype, caps.get("kv_held", float("inf"))
        return Prompt(submission.prompt, is_text, decoder.config, dtype, most, submission.max_tokens)

    def _refuse_too_long(self, method: Method, submission: Submission) -> None:
        """Raises an error for a prompt that never fits into the cache."""
        length, limit = len(submission.prompt), self._cache_tokens
        if limit is not None and len(submission.input) > limit:
            raise UsageError(
                f"the input has {len(submission.input)} tokens, but the cache holds {limit}; load the model with a "
                "larger cache_tokens"
            )
        if limit is not None and issubclass(method.run_type, CanvasRun) and length + submission.max_tokens > limit:
            raise UsageError(
                f"the prompt has {length} tokens and the canvas {submission.max_tokens}, but the cache holds {limit}; "
                "take a smaller max_tokens, or load the model with a larger cache_tokens"
            )
        if limit is not None and length >= limit and issubclass(method.run_type, TreeRun):
            raise UsageError(
                f"the prompt has {length} tokens, but the cache holds {limit}, one of which must be left for the "
                "answer; load the model with a larger cache_tokens"
            )

    def _refuse(self) -> None:
        """Raises an error where a submission is one too many."""
        if self._closed:
            raise UsageError("the engine is closed and takes no more requests; load the model again")
        room = self._max_waiting + max(0, self._max_runs - len(self._runs.live))
        if len(self._queue) >= room:
            self._tidy()
        if len(self._queue) >= room:
            raise QueueFull(
                f"{self._max_waiting} requests are waiting, as many as this engine takes; submit again later, or load "
                "the model with a larger max_waiting"
            )

    def _take_back(self) -> None:
        """Queues the runs that were put back, each in its place by the order of submission."""
        if self._runs.put_back:
            back, self._runs.put_back = self._runs.put_back, []
            self._queue = sorted([*back, *self._queue], key=lambda waiting: waiting.number)

    def _tidy(self) -> None:
        """Ends what was cancelled while it waited, and what has waited for too long."""
        self._queue = [waiting for waiting in self._queue if not waiting.left()]

    def _employ(self, model: Model, role: Role) -> ModelWorker:
        worker = ModelWorker(
            model,
            role=role,
            cache_tokens=self._cache_tokens,
            prefix_cache=self._prefix_cache,
            kv_dtype=self._kv_dtype,
            outputs=self._outputs,
        )
        worker.cache.rescue = lambda: self._runs.rescue(worker)
        return worker

    def _wake(self) -> None:
        """Wakes the thread where all runs wait for jobs: a job has ended, or a run was cancelled."""
        with self._lock:
            self._awake = True
            self._lock.notify_all()

    @property
    def _can_admit(self) -> bool:
        return bool(self._queue) and len(self._runs.live) < self._max_runs and not self._runs.full

    @torch.inference_mode()
    def _loop(self) -> None:
        while True:
            with self._lock:
                self._take_back()
                if not self._runs.live and not self._queue and not self._spare:
                    self._settled = True
                    self._lock.notify_all()
                    self._lock.wait_for(lambda: bool(self._queue) or self._closed, timeout=LINGER)
                if not self._runs.live and not self._queue and (self._closed or not self._spare):
                    self._thread = None
                    return
                if self._cancelling:
                    for handle in [*(each.handle for each in self._queue), *(each.handle for each in self._runs.live)]:
                        handle.cancel()
                elif self._runs.wait_for_jobs:
                    left = seconds_left([*self._queue, *self._runs.live])
                    self._lock.wait_for(lambda: self._awake or self._can_admit or self._closed, timeout=left)
                self._awake = False
                self._tidy()
                room = 0 if self._runs.full else self._max_runs - len(self._runs.live)
                admitted, self._queue = self._queue[:room], self._queue[room:]
            with self._ticking:
                try:
                    self._runs.tick(admitted)
                    self._spare = self._runs.spare()
                except Exception as failure:  # a mistake of ours: whoever waits must hear of it
                    self._runs.fail(admitted, failure)
