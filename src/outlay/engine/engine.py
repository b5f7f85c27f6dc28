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
from outlay.engine.method import Method, Request, Source, Work, Worker
from outlay.engine.run import RESERVE, Run, RunOptions, Seat
from outlay.engine.text import TextStream
from outlay.engine.trace import Trace
from outlay.engine.worker import ModelWorker
from outlay.errors import UsageError
from outlay.models.load import Model

LINGER = 5.0  # seconds that the idle thread waits for more work before it ends


def _seats(run: Run) -> list[Seat]:
    """Returns the seats that a run has; none before it is admitted."""
    return [seat for seat in (getattr(run, "target", None), run.draft) if seat is not None]


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """An interpreter that ends while the thread is inside torch aborts the process, so the thread has to end before."""
    for engine in list(_ENGINES):
        engine.close()


@dataclass
class _Live:
    """A run in the engine: its generator and what it waits for."""

    run: Run
    handle: Handle
    target: Model
    draft: Model | Source | None
    write_trace: Callable[[dict[str, Any]], None] | None
    work: Work | None = None
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
        self._queue: list[_Live] = []
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
        self,
        target: Model,
        method: Method,
        prompt: Sequence[int],
        options: RunOptions,
        *,
        draft: Model | Source | None = None,
        trace: Callable[[dict[str, Any]], None] | None = None,
    ) -> Handle:
        """Hands in a run and returns its handle at once. Raises `UsageError` for a prompt that can't be run."""
        context = target.decoder.config.max_positions
        if not prompt:
            raise UsageError("the prompt is empty; give it at least one token")
        if len(prompt) >= context:
            raise UsageError(
                f"the prompt has {len(prompt)} tokens, but {target.name} reads at most {context}, one of which "
                "must be left for the answer"
            )
        vocab = target.decoder.config.vocab_size
        strange = next((token for token in prompt if not 0 <= token < vocab), None)
        if strange is not None:
            raise UsageError(f"token {strange} is not in the vocabulary of {target.name} (0 to {vocab - 1})")
        handle = Handle()
        eos = frozenset() if options.ignore_eos else frozenset(target.tokenizer.eos_token_ids)
        text = TextStream(target.tokenizer, options.stop)
        run = Run(method, prompt, options, text, eos, context, handle.add)
        run.model = target
        if isinstance(draft, Model):
            run.draft_model = draft
        else:
            run.source = draft
        method.check(run)
        with self._lock:
            self._queue.append(_Live(run, handle, target, draft, trace))
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
            for live in [*self._queue, *self._live]:
                live.handle.cancel()
            self._lock.notify_all()
        if thread is not None:
            thread.join()
        self._closing = False

    def clear(self, *, learned: bool = True) -> None:
        """Forgets the prefixes kept for reuse, and what methods have learned. What running requests hold stays."""
        with self._ticking:
            for worker in self._workers.values():
                if learned:
                    worker.kept.clear()
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

    def _fail_all(self, lives: Sequence[_Live], failure: Exception) -> None:
        self._live.clear()
        for live in lives:
            if not live.handle.done:
                live.handle.end(None, failure)
        for live in lives:
            for seat in _seats(live.run):
                with suppress(Exception):  # a mistake may have left something that can't be given back
                    seat.release()

    def _tick(self, admitted: Sequence[_Live]) -> None:
        """Admits, sends every worker its requests, and lets each run go on with its results."""
        started = time.perf_counter()
        for live in admitted:
            self._admit(live)
        for live in admitted:  # when all have their seats, so that each knows beside how many others it runs
            if live.work is not None:
                self._resume(live)
        for live in self._live:
            self._police(live)
        # Drafts first: a run that drafts in one pass then takes part in the target's pass of the same tick.
        if drafts := self._pending(drafts=True):
            self._serve(drafts)
        self._serve(self._pending(drafts=False))
        self.ticks += 1
        self.tick_seconds += time.perf_counter() - started

    def _pending(self, *, drafts: bool) -> list[tuple[Worker, list[Request]]]:
        """Returns the workers that are asked for something, draft models or the others, with what they are asked."""
        batches: dict[int, tuple[Worker, list[Request]]] = {}
        for live in self._live:
            for request in live.waiting:
                if not request.done and live.run.finish_reason is None and (request.worker.role == "draft") == drafts:
                    batches.setdefault(id(request.worker), (request.worker, []))[1].append(request)
        return list(batches.values())

    def _serve(self, batches: Sequence[tuple[Worker, list[Request]]]) -> None:
        """Has each worker do a step, and lets each run go on that then has all that it waited for."""
        for worker, requests in batches:
            try:
                worker.advance(requests)
            except Exception as failure:  # fails those who asked, not the engine and not the others
                for request in requests:
                    request.error, request.done = failure, True
        for live in list(self._live):
            if live.run.finish_reason is not None:
                self._end(live)
            elif all(request.done for request in live.waiting):
                self._resume(live)

    def _admit(self, live: _Live) -> None:
        run = live.run
        self._live.append(live)
        try:
            worker = self.worker(live.target)
            reserve = min(run.max_tokens, RESERVE)
            tree, prompt_end = worker.plant(run.prompt, reserve)
            target, draft = Seat(run, worker, tree), None
            run.begin(target, None, prompt_end)
            if isinstance(live.draft, Model):
                draft_worker = self.worker(live.draft, "draft")
                if live.draft.decoder.reads_hidden_states:
                    worker.keep_hidden_states()
                    draft_worker.keep_hidden_states()
                draft = Seat(run, draft_worker, draft_worker.plant(run.prompt, reserve)[0])
                run.begin(target, draft, prompt_end)
        except Exception as failure:  # a full cache, above all: fails this run, not the engine
            self._end(live, failure)
            return
        if live.write_trace is not None:
            run.trace = tree.watch = Trace(live.write_trace, live.target.tokenizer)
            run.trace.begun(method=run.method.label, model=live.target.name, prompt=list(run.prompt))
            run.trace.grew(prompt_end.path())
        live.work = run.method.decode(run)

    def _police(self, live: _Live) -> None:
        """Ends a run that was cancelled or is out of time, before more is spent on it."""
        live.run.clock()
        if live.run.finish_reason is None:
            if live.handle.cancelled:
                live.run.finish("cancelled")
            elif live.run.left("seconds") <= 0:
                live.run.finish("budget")

    def _resume(self, live: _Live) -> None:
        """Sends a run its results and takes its next requests; a run that is finished, fails or returns is ended."""
        assert live.work is not None
        error = next((request.error for request in live.waiting if request.error is not None), None)
        results = [request.result for request in live.waiting]
        try:
            if error is not None:
                raise error
            answer = results[0] if live.alone and results else results
            asked = live.work.send(answer) if live.waiting else next(live.work)
        except StopIteration:
            live.run.finish("stop")
        except Exception as failure:  # whatever a method raises belongs to its caller, and must not stop the others
            self._end(live, failure)
            return
        else:
            live.alone = isinstance(asked, Request)
            live.waiting = [asked] if isinstance(asked, Request) else list(asked)
        if live.run.finish_reason is not None:
            self._end(live)

    def _end(self, live: _Live, error: BaseException | None = None) -> None:
        run = live.run
        self._live.remove(live)
        if live.work is not None:
            live.work.close()
        if error is None:
            run.finish(run.finish_reason or "stop")
            error = run.trace.error if run.trace is not None else None
        for seat in _seats(run):
            tip = seat.tree.tip
            while tip is not None and not tip.computed:
                tip = tip.parent
            if tip is not None and error is None:
                seat.worker.remember(tip)
            seat.release()
        self.ledger += run.ledger
        if error is not None:
            live.handle.end(None, error)
            return
        live.handle.end(
            Result(
                text=run.text,
                tokens=run.tokens,
                finish_reason=run.finish_reason or "stop",
                ledger=run.ledger,
                method=run.method.label,
                model=live.target.name,
                origins=run.origins,
                logprobs=run.logprobs if run.options.logprobs is not None else None,
                alternatives=run.alternatives,
            )
        )
