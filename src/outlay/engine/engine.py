"""The engine: holds many runs, gathers the work that they ask for, and does one batched step for each worker a tick.

One thread does the work, started when there is some and gone when there has been none for a while. Runs are handed in
and their text handed out under locks, so any number of threads and event loops can use one engine.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from outlay.budget import Ledger
from outlay.engine.handle import Handle, Result
from outlay.engine.method import Method, Work
from outlay.engine.request import Request, Served, Stage, Worker
from outlay.engine.seat import Seat
from outlay.engine.session import Session
from outlay.engine.submission import Submission
from outlay.engine.trace import Trace
from outlay.engine.tree_run import TreeRun
from outlay.engine.worker import ModelWorker
from outlay.models.load import Model

LINGER = 5.0  # seconds that the idle thread waits for more work before it ends
RESERVE = 512  # tokens of text for which a run asks the cache for room at once; more comes when it is needed


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """An interpreter that ends while the thread is inside torch aborts the process, so the thread has to end before."""
    for engine in list(_ENGINES):
        engine.close()


@dataclass
class _Waiting:
    """What was submitted and is not admitted yet."""

    method: Method
    session: Session
    handle: Handle


@dataclass
class _Live:
    """A run in the engine: its generator and the requests that it waits for."""

    run: TreeRun
    session: Session
    handle: Handle
    seats: list[Seat]
    label: str
    work: Work
    waiting: list[Request] = field(default_factory=list)
    alone: bool = True  # the method yielded one request, not a list


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
        self._queue: list[_Waiting] = []
        self._live: list[_Live] = []
        self._thread: threading.Thread | None = None
        self._closing = False
        _ENGINES.add(self)
        self._workers: dict[tuple[str, str], ModelWorker] = {}
        self.ledger = Ledger()
        self.ticks = 0
        self.tick_seconds = 0.0

    @property
    def workers(self) -> list[ModelWorker]:
        """The models at work, as targets and as drafts."""
        return list(self._workers.values())

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
        method.check(submission)
        handle = Handle()
        tracer = Trace(trace, submission.model.tokenizer) if trace is not None else None
        session = Session(submission, handle.add, tracer)
        with self._lock:
            self._queue.append(_Waiting(method, session, handle))
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="outlay-engine", daemon=True)
                self._thread.start()
            self._lock.notify()
        return handle

    def together(self) -> AbstractContextManager[bool]:
        """A context in which the engine admits nothing, so that all that is submitted in it starts in the same tick."""
        return self._lock

    def worker(self, model: Model, role: str = "target") -> ModelWorker:
        """Returns the worker that runs `model` as "target" or "draft"."""
        key = (f"{model.fingerprint} {model.format} {model.decoder.device}", role)
        if key not in self._workers:
            self._workers[key] = ModelWorker(
                model,
                role=role,
                cache_tokens=self._cache_tokens,
                prefix_cache=self._prefix_cache,
                kv_dtype=self._kv_dtype,
            )
        return self._workers[key]

    def close(self) -> None:
        """Cancels what is running and waits until the engine's thread has ended. The engine can be used again."""
        with self._lock:
            self._closing, thread = True, self._thread
            for handle in [*(each.handle for each in self._queue), *(each.handle for each in self._live)]:
                handle.cancel()
            self._lock.notify_all()
        if thread is not None:
            thread.join()
        self._closing = False

    def clear(self, *, learned: bool = True) -> None:
        """Forgets the prefixes kept for reuse, and what methods have learned. What running requests hold stays."""
        with self._ticking:
            for worker in self._workers.values():
                if learned:
                    worker.shared_state.clear()
                if worker.prefixes is not None:
                    worker.prefixes.clear()

    @torch.inference_mode()
    def _loop(self) -> None:
        while True:
            with self._lock:
                if not self._live and not self._queue:
                    self._lock.wait_for(lambda: bool(self._queue) or self._closing, timeout=LINGER)
                if not self._live and not self._queue:
                    self._thread = None
                    return
                room = self._max_runs - len(self._live)
                admitted, self._queue = self._queue[:room], self._queue[room:]
            with self._ticking:
                try:
                    self._tick(admitted)
                except Exception as failure:  # a mistake of ours: whoever waits must hear of it
                    self._fail_all([*self._live, *admitted], failure)

    def _fail_all(self, failed: Sequence[_Live | _Waiting], failure: Exception) -> None:
        self._live.clear()
        for each in failed:
            if not each.handle.done:
                each.handle.end(None, failure)
        for each in failed:
            for seat in each.seats if isinstance(each, _Live) else ():
                with suppress(Exception):  # a mistake may have left something that can't be released
                    seat.release(remember=False)

    def _tick(self, admitted: Sequence[_Waiting]) -> None:
        """Admits, sends every worker its requests, and lets each run go on with its results."""
        started = time.perf_counter()
        fresh = [live for waiting in admitted if (live := self._admit(waiting)) is not None]
        for live in fresh:  # when all have their seats, so that each knows beside how many others it runs
            self._resume(live)
        for live in self._live:
            self._police(live)
        # Drafts first: a run that drafts in one pass then takes part in the target's pass of the same tick.
        if drafts := self._pending("draft"):
            self._serve(drafts)
        self._serve(self._pending("pass"))
        self.ticks += 1
        self.tick_seconds += time.perf_counter() - started

    def _pending(self, stage: Stage) -> list[tuple[Worker, list[Request]]]:
        """Returns the workers of a stage that are asked for something, with what they are asked."""
        batches: dict[int, tuple[Worker, list[Request]]] = {}
        for live in self._live:
            for request in live.waiting:
                if not request.done and live.session.finish_reason is None and request.worker.stage == stage:
                    batches.setdefault(id(request.worker), (request.worker, []))[1].append(request)
        return list(batches.values())

    def _serve(self, batches: Sequence[tuple[Worker, list[Request]]]) -> None:
        """Has each worker do a step, and lets each run go on that then has all that it waited for."""
        for worker, requests in batches:
            try:
                served = worker.advance(requests)
            except Exception as failure:  # fails those who asked, not the engine and not the others
                for request in requests:
                    request.fail(failure)
            else:
                if served is not None:
                    self._trace(worker, served)
        for live in list(self._live):
            if any(request.over_budget for request in live.waiting):
                live.run.close("budget")
            if live.session.finish_reason is not None:
                self._end(live)
            elif all(request.done for request in live.waiting):
                self._resume(live)

    def _trace(self, worker: Worker, served: Served) -> None:
        for live in self._live:
            if live.session.trace is not None and live.session.account in served.nodes:
                live.session.trace.passed(worker.role, served.report, served.nodes[live.session.account])

    def _admit(self, waiting: _Waiting) -> _Live | None:
        """Gives a run its seats and starts its method. A failure, a full cache above all, fails this run alone."""
        method, session, handle = waiting.method, waiting.session, waiting.handle
        submission, seats = session.submission, list[Seat]()
        try:
            worker = self.worker(submission.model)
            seats.append(self._seat(session, worker))
            if submission.draft is not None and submission.draft.model is not None:
                draft_worker = self.worker(submission.draft.model, "draft")
                if submission.draft.model.decoder.reads_hidden_states:
                    worker.keep_hidden_states()
                    draft_worker.keep_hidden_states()
                seats.append(self._seat(session, draft_worker))
        except Exception as failure:
            for seat in seats:
                seat.release(remember=False)
            handle.end(None, failure)
            return None
        run = TreeRun(session, *seats)
        if session.trace is not None:
            run.tree.watch = session.trace
            session.trace.begun(method=method.label, model=submission.model.name, prompt=list(submission.prompt))
            session.trace.grew(run.tip.path())
        live = _Live(run, session, handle, seats, method.label, method.decode(run))
        self._live.append(live)
        return live

    def _seat(self, session: Session, worker: ModelWorker) -> Seat:
        """Returns a run's seat at a model, which holds the prompt."""
        tree = worker.plant(session.submission.prompt, reserve=min(session.max_tokens, RESERVE))
        return Seat(session.account, worker, tree, raw_logits=session.submission.options.logprobs is not None)

    def _police(self, live: _Live) -> None:
        """Ends a run that was cancelled or is out of time, before more is spent on it."""
        live.session.tick()
        if live.session.finish_reason is None:
            if live.handle.cancelled:
                live.run.close("cancelled")
            elif live.run.left("seconds") <= 0:
                live.run.close("budget")

    def _resume(self, live: _Live) -> None:
        """Sends a run its results and takes its next requests; a run that is finished, fails or returns is ended."""
        error = next((request.error for request in live.waiting if request.error is not None), None)
        results = [request.result for request in live.waiting]
        live.run.receive(live.waiting)
        try:
            if error is not None:
                raise error
            answer = results[0] if live.alone and results else results
            asked = live.work.send(answer) if live.waiting else next(live.work)
        except StopIteration:
            live.run.close("stop")
        except Exception as failure:  # whatever a method raises belongs to its caller, and must not stop the others
            self._end(live, failure)
            return
        else:
            live.alone = isinstance(asked, Request)
            live.waiting = [asked] if isinstance(asked, Request) else list(asked)
        if live.session.finish_reason is not None:
            self._end(live)

    def _end(self, live: _Live, error: BaseException | None = None) -> None:
        session = live.session
        self._live.remove(live)
        live.work.close()
        if error is None:
            live.run.close("stop")
            error = session.trace.error if session.trace is not None else None
        for seat in live.seats:
            seat.release(remember=error is None)
        self.ledger += session.ledger
        live.handle.end(self._result(live) if error is None else None, error)

    @staticmethod
    def _result(live: _Live) -> Result:
        session = live.session
        return Result(
            text=session.text,
            tokens=session.tokens,
            finish_reason=session.finish_reason or "stop",
            ledger=session.ledger,
            method=live.label,
            model=session.submission.model.name,
            origins=session.origins,
            logprobs=session.logprobs if session.submission.options.logprobs is not None else None,
            alternatives=session.alternatives,
        )
