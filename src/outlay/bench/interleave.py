"""Measures contenders side by side: each in a process of its own, all in turn, round after round, compared by round.

A machine's speed drifts, so two numbers are only worth comparing when they were taken next to each other. Every task is
given to all contenders one after the other, the order shifts by one each round, and a ratio is the median of the ratios
within the rounds. The first round warms up and is not counted. Processes that wait should use no core, and what they do
use is measured.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, NamedTuple

from outlay.errors import FailureError

LOAD_LIMIT = 300.0  # seconds
TASK_LIMIT = 180.0
PAUSE = 0.05  # between two turns: threads that spin after their work have stopped by then

Values = Mapping[str, float]


class Contender(ABC):
    """What is measured. It is pickled into its process before `load`; what it holds there stays there."""

    name: str

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that its process starts with."""
        return {}

    def takes(self, task: Any) -> bool:
        """Tells whether this task is for it."""
        return True

    @abstractmethod
    def load(self) -> dict[str, Any]:
        """Gets ready, once; returns what the report should say about it."""

    @abstractmethod
    def measure(self, task: Any) -> Values:
        """Does the task and returns what was measured, by name."""


class Spread(NamedTuple):
    """The median over the rounds, and the least and the greatest."""

    median: float
    low: float
    high: float


@dataclass
class Outcome:
    """What came out. `values[name, task]` has one entry a round, None where the contender gave no answer.

    `facts` is what each contender's `load` returned, `failures` why a contender dropped out, `idle` the greatest share
    of a core that its process used while another was at work, `seconds` what its tasks took in all, warming up
    and prompts included.
    """

    values: dict[tuple[str, Hashable], list[Values | None]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    seconds: dict[tuple[str, Hashable], float] = field(default_factory=dict)

    def series(self, name: str, task: Hashable, metric: str) -> list[float | None]:
        """Returns one metric of one contender, an entry a round."""
        return [None if values is None else values.get(metric) for values in self.values.get((name, task), [])]

    def spread(self, name: str, task: Hashable, metric: str) -> Spread | None:
        """Returns the median of a metric over the rounds, or None where there is no value."""
        return spread(self.series(name, task, metric))

    def median(self, name: str, task: Hashable, metric: str) -> float | None:
        """Returns the median of a metric over the rounds, or None where there is no value."""
        found = self.spread(name, task, metric)
        return None if found is None else found.median

    def ratio(self, one: tuple[str, Hashable], other: tuple[str, Hashable], metric: str) -> Spread | None:
        """Returns `one` over `other`, each a contender with a task, paired by round; None without a round with both."""
        return self.paired(self.series(*one, metric), self.series(*other, metric))

    @staticmethod
    def paired(ones: Sequence[float | None], others: Sequence[float | None]) -> Spread | None:
        """Returns the ratio of two series, paired by round."""
        pairs = zip(ones, others, strict=False)
        return spread([one / other for one, other in pairs if one is not None and other])


def spread(series: Sequence[float | None]) -> Spread | None:
    """Returns median, least and greatest of the values that are there, or None where there are none."""
    known = [value for value in series if value is not None]
    return Spread(median(known), min(known), max(known)) if known else None


def interleave(
    contenders: Sequence[Contender],
    tasks: Sequence[Hashable],
    rounds: int,
    *,
    around: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
    load_limit: float = LOAD_LIMIT,
    task_limit: float = TASK_LIMIT,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Outcome:
    """Measures every task on every contender that takes it, `rounds` times after one round that warms up.

    `around(task)` gives a context in which the task is measured. A contender that fails, dies, or takes longer than
    `load_limit` or `task_limit` seconds drops out and leaves its reason in `failures`; the others go on. All processes
    are gone when this returns or raises.
    """
    outcome = Outcome()
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(contender)) for contender in contenders]
        deadline = time.monotonic() + load_limit
        for done, worker in enumerate(workers):
            progress(f"loading {worker.name}", done, len(workers))
            try:
                outcome.facts[worker.name] = worker.receive(deadline - time.monotonic())
            except FailureError as error:
                outcome.failures[worker.name] = str(error)
        total = (rounds + 1) * len(tasks)
        for turn in range(rounds + 1):
            phase = f"round {turn} of {rounds}" if turn else "warming up"
            for index, task in enumerate(tasks):
                progress(phase, turn * len(tasks) + index, total)
                for worker in _rotated(workers, turn):
                    if worker.contender.takes(task):
                        values = _measure(worker, task, outcome, around, task_limit)
                        if turn:
                            outcome.values.setdefault((worker.name, task), []).append(values)
    return outcome


def _rotated(workers: Sequence[Worker], turn: int) -> Iterator[Worker]:
    return (workers[(index + turn) % len(workers)] for index in range(len(workers)))


def _measure(
    worker: Worker,
    task: Hashable,
    outcome: Outcome,
    around: Callable[[Any], AbstractContextManager[Any]],
    limit: float,
) -> Values | None:
    if worker.name in outcome.failures:
        return None
    key, started = (worker.name, task), time.perf_counter()
    try:
        with around(task):
            values, idle = worker.ask(task, limit)
    except FailureError as error:
        outcome.failures[worker.name] = str(error)
        return None
    finally:
        outcome.seconds[key] = outcome.seconds.get(key, 0.0) + time.perf_counter() - started
    outcome.idle[worker.name] = max(outcome.idle.get(worker.name, 0.0), idle)
    time.sleep(PAUSE)
    return values


class Worker:
    """A contender's process. It ends with the `with` block, whatever it does, and by itself when its parent is gone."""

    def __init__(self, contender: Contender) -> None:
        self.contender, self.name = contender, contender.name
        path = os.pathsep.join(part or os.getcwd() for part in sys.path)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from outlay.bench.interleave import serve; serve({theirs.fileno()})"],
                env=os.environ | {"PYTHONPATH": path} | contender.environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C reaches us alone, and what it starts can be ended with it
            )
        self._connection.send(contender)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, task: Hashable, limit: float) -> tuple[Values, float]:
        """Has a task measured; returns the values and the share of a core that the process used while it waited."""
        try:
            self._connection.send(task)
        except OSError:
            raise FailureError(self._last_words()) from None
        answer: tuple[Values, float] = self.receive(limit)
        return answer

    def receive(self, limit: float) -> Any:
        """Waits up to `limit` seconds for an answer. Raises `FailureError` with the reason why none comes."""
        if not self._connection.poll(max(limit, 0)):
            self.close()
            raise FailureError(f"no answer within {max(limit, 0):.3g} s")
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise FailureError(self._last_words()) from None

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()
        self._log.close()

    def _last_words(self) -> str:
        """Says why the process ended: the last line that it wrote, which is an exception's if there was one."""
        status = self._process.wait()
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 4096))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        said = re.sub(r"^outlay\.errors\.\w+: ", "", lines[-1].strip()) if lines else ""
        if status >= 0:
            return said or f"ended with status {status}"
        return f"died of {signal.Signals(-status).name}" + (f" after {said!r}" if said else "")


def serve(fileno: int) -> None:
    """The life of a contender's process: load, then measure what is asked for until nobody asks."""
    connection = Connection(fileno)
    contender: Contender = connection.recv()
    connection.send(contender.load())
    while True:
        rested, used = time.perf_counter(), time.process_time()
        try:
            task = connection.recv()
        except EOFError:
            return
        idle = (time.process_time() - used) / max(time.perf_counter() - rested, 1e-9)
        connection.send((contender.measure(task), idle if time.perf_counter() - rested > 1 else 0.0))
