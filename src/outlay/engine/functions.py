"""Workers that call Python functions: quick ones within the tick, slow ones in threads and processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from outlay.budget import ENTRIES, Ledger
from outlay.engine.registry import Wake
from outlay.engine.request import Request, Worker
from outlay.engine.run import Run

STEP_SECONDS = 0.005  # after which a quick worker lets the runs go on that have their results


@dataclass(eq=False)
class Call(Request):
    """A call of the worker's function; the result is what the function returns."""

    arguments: tuple[Any, ...]

    amount: int = 1
    """What the call adds to the entry that its worker counts, such as the number of texts that it rates."""


class _Caller(Worker):
    """What all workers that call a function share. `counts` names the ledger's entry that a call is charged to."""

    def __init__(self, function: Callable[..., Any], *, counts: str | None, role: str) -> None:
        if counts is not None and counts not in ENTRIES:
            raise ValueError(f"the ledger has no entry {counts!r}; it has {', '.join(ENTRIES)}")
        self.role = role
        self.ledger = Ledger()
        self._function, self._counts = function, counts

    def call(self, run: Run, *arguments: Any, amount: int = 1) -> Call:
        """Returns the request to call the function for a run.

        Args:
            run: Who asks, and pays.
            arguments: What the function is called with.
            amount: What the call adds to the entry that is counted. A call that is above the run's budget isn't made.
        """
        return Call(run.account, self, arguments, amount)

    def _charge(self, call: Call) -> bool:
        """Charges the run for a call; refuses it, and returns False, where its budget doesn't allow that."""
        if self._counts is None:
            return True
        if not call.account.spend(self._counts, call.amount):
            call.refuse(self._counts)
            return False
        setattr(self.ledger, self._counts, getattr(self.ledger, self._counts) + call.amount)
        return True


class FunctionWorker(_Caller):
    """Calls a quick Python function, within the tick: what takes milliseconds belongs into a `ThreadWorker`."""

    stage = "now"

    def __init__(self, function: Callable[..., Any], *, counts: str | None = None, role: str = "function") -> None:
        super().__init__(function, counts=counts, role=role)

    def advance(self, requests: Sequence[Call]) -> None:
        until = time.perf_counter() + STEP_SECONDS
        for call in _in_turns(requests):
            if self._charge(call):
                try:
                    call.finish(self._function(*call.arguments))
                except (Exception, SystemExit) as error:
                    call.fail(error)
            if time.perf_counter() > until:
                return


class PoolWorker(_Caller):
    """Calls a function in a pool of threads or processes, which are shut down with the engine."""

    stage = "job"

    def __init__(
        self,
        function: Callable[..., Any],
        pool: Executor,
        wake: Wake,
        *,
        counts: str | None = None,
        role: str = "job",
    ) -> None:
        super().__init__(function, counts=counts, role=role)
        self._pool, self._wake = pool, wake
        self._running: dict[Call, Future[Any]] = {}

    def advance(self, requests: Sequence[Call]) -> None:
        for call in requests:
            future = self._running.get(call)
            if future is None:
                self._start(call)
            elif future.done():
                self._collect(call, self._running.pop(call))

    def abandon(self, requests: Sequence[Call]) -> None:
        for call in requests:
            if future := self._running.pop(call, None):
                future.cancel()  # one that runs already runs to its end, and nobody reads its result

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, call: Call) -> None:
        if not self._charge(call):
            return
        try:
            future = self._pool.submit(self._function, *call.arguments)
        except Exception as error:  # a process that died has broken the pool
            call.fail(error)
            return
        self._running[call] = future
        future.add_done_callback(lambda _: self._wake())

    @staticmethod
    def _collect(call: Call, future: Future[Any]) -> None:
        try:
            error = future.exception()
        except CancelledError as cancelled:
            error = cancelled
        if error is None:
            call.finish(future.result())
        else:
            call.fail(error)


class ThreadWorker(PoolWorker):
    """Calls a slow function that leaves the interpreter to others: one that waits, or computes in native code."""

    def __init__(
        self,
        function: Callable[..., Any],
        wake: Wake,
        *,
        threads: int = 4,
        counts: str | None = None,
        role: str = "job",
    ) -> None:
        pool = ThreadPoolExecutor(threads, thread_name_prefix=f"outlay-{role}")
        super().__init__(function, pool, wake, counts=counts, role=role)


class ProcessWorker(ThreadWorker):
    """Calls a slow function that computes in Python. It and its arguments are pickled, so it is one of a module.

    The processes are started anew, not forked: a fork of a process with threads may hang. Starting one takes tens of
    milliseconds, so a thread waits for each, and the tick doesn't. Where one dies, the calls at work fail, and the next
    ones get new processes.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        wake: Wake,
        *,
        processes: int = 2,
        counts: str | None = None,
        role: str = "job",
    ) -> None:
        super().__init__(self._call_elsewhere, wake, threads=processes, counts=counts, role=role)
        self._called, self._count = function, processes
        self._guard = threading.Lock()
        self._processes = self._start_processes()

    def close(self) -> None:
        super().close()
        self._processes.shutdown(wait=False, cancel_futures=True)

    def _call_elsewhere(self, *arguments: Any) -> Any:
        with self._guard:
            processes = self._processes
        try:
            return processes.submit(self._called, *arguments).result()
        except BrokenProcessPool:
            with self._guard:
                if self._processes is processes:
                    self._processes = self._start_processes()
            raise

    def _start_processes(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._count, mp_context=get_context("spawn"))


def _in_turns(calls: Sequence[Call]) -> Sequence[Call]:
    """Returns the calls with those of different runs in turns, so that none waits for all of another's."""
    turns: dict[int, int] = {}
    places = []
    for call in calls:
        turn = turns[id(call.account)] = turns.get(id(call.account), -1) + 1
        places.append(turn)
    if len(turns) < 2:
        return calls
    return [calls[i] for i in sorted(range(len(calls)), key=places.__getitem__)]
