"""Measures participants side by side: each in a process of its own, all in turn, round after round, compared by round.

Every task is given to all participants one after the other, and the order shifts by one each round. The first round
warms up and is not counted. Processes that wait should use no core, and what they do use is measured.
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
from typing import Any

from outlay.errors import FailureError
from outlay.progress import ShowProgress, silent
from outlay.spread import Spread, middle, paired_ratio, spread

LOAD_LIMIT = 300.0  # seconds
TASK_LIMIT = 180.0
PAUSE = 0.05  # between two turns: threads that spin after their work have stopped by then

Values = Mapping[str, float]


class Participant(ABC):
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


@dataclass
class Measurements:
    """What the participants measured."""

    values: dict[tuple[str, Hashable], list[Values | None]] = field(default_factory=dict)
    """By participant and task, an entry a round; None where the participant gave no answer."""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each participant's `load` returned."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a participant dropped out."""
    idle: dict[str, float] = field(default_factory=dict)
    """The greatest share of a core that a participant's process used while another was at work."""
    seconds: dict[tuple[str, Hashable], float] = field(default_factory=dict)
    """What a task took in all, with the warm-up and the prompts."""

    def series(self, name: str, task: Hashable, metric: str) -> list[float | None]:
        """Returns one metric of one participant, an entry a round."""
        return [None if values is None else values.get(metric) for values in self.values.get((name, task), [])]

    def spread(self, name: str, task: Hashable, metric: str) -> Spread | None:
        """Returns the median, least and greatest of a metric over the rounds, None where there is no value."""
        return spread(self.series(name, task, metric))

    def median(self, name: str, task: Hashable, metric: str) -> float | None:
        """Returns the median of a metric over the rounds, None where there is no value."""
        return middle(self.series(name, task, metric))

    def ratio(self, one: tuple[str, Hashable], other: tuple[str, Hashable], metric: str) -> Spread | None:
        """Returns `one` over `other`, each a participant and a task, paired by round; None without a common round."""
        return paired_ratio(self.series(*one, metric), self.series(*other, metric))


def interleave(
    participants: Sequence[Participant],
    tasks: Sequence[Hashable],
    rounds: int,
    *,
    around: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
    load_limit: float = LOAD_LIMIT,
    task_limit: float = TASK_LIMIT,
    progress: ShowProgress = silent,
) -> Measurements:
    """Measures every task on every participant that takes it, in `rounds` rounds after one that warms up.

    A participant that fails, dies, or exceeds a time limit drops out and leaves its reason in `failures`; the others go
    on. All processes are gone when this returns or raises.

    Args:
        participants: who is measured; each gets a process.
        tasks: what is asked of them, in this order.
        rounds: how many rounds are counted.
        around: gives the context in which a task is measured.
        load_limit: seconds for all participants to load.
        task_limit: seconds for one task of one participant.
        progress: is told how far the work is.
    """
    found = Measurements()
    with ExitStack() as stack:
        processes = [stack.enter_context(ParticipantProcess(participant)) for participant in participants]
        _load(processes, found, load_limit, progress)

        total = (rounds + 1) * len(tasks)
        for turn in range(rounds + 1):
            phase = f"round {turn} of {rounds}" if turn else "warming up"
            for index, task in enumerate(tasks):
                progress(phase, turn * len(tasks) + index, total)
                for process in _rotated(processes, turn):
                    if process.participant.takes(task):
                        values = _measure(process, task, found, around, task_limit)
                        if turn:
                            found.values.setdefault((process.name, task), []).append(values)
    return found


def _load(
    processes: Sequence[ParticipantProcess],
    found: Measurements,
    limit: float,
    progress: ShowProgress,
) -> None:
    """Waits until all are ready; they load at the same time."""
    deadline = time.monotonic() + limit
    for done, process in enumerate(processes):
        progress(f"loading {process.name}", done, len(processes))
        try:
            found.facts[process.name] = process.receive(deadline - time.monotonic())
        except FailureError as error:
            found.failures[process.name] = str(error)


def _rotated(processes: Sequence[ParticipantProcess], turn: int) -> Iterator[ParticipantProcess]:
    return (processes[(index + turn) % len(processes)] for index in range(len(processes)))


def _measure(
    process: ParticipantProcess,
    task: Hashable,
    found: Measurements,
    around: Callable[[Any], AbstractContextManager[Any]],
    limit: float,
) -> Values | None:
    if process.name in found.failures:
        return None
    key, started = (process.name, task), time.perf_counter()
    try:
        with around(task):
            values, idle = process.ask(task, limit)
    except FailureError as error:
        found.failures[process.name] = str(error)
        return None
    finally:
        found.seconds[key] = found.seconds.get(key, 0.0) + time.perf_counter() - started
    found.idle[process.name] = max(found.idle.get(process.name, 0.0), idle)
    time.sleep(PAUSE)
    return values


class ParticipantProcess:
    """A participant's process. It ends with the `with` block, and by itself when its parent is gone."""

    def __init__(self, participant: Participant) -> None:
        self.participant, self.name = participant, participant.name
        path = os.pathsep.join(part or os.getcwd() for part in sys.path)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from outlay.bench.interleave import serve; serve({theirs.fileno()})"],
                env=os.environ | {"PYTHONPATH": path} | participant.environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C reaches us alone, and what it starts can be ended with it
            )
        self._connection.send(participant)

    def __enter__(self) -> ParticipantProcess:
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
    """Runs a participant in its process: loads, then measures what is asked for until the connection closes."""
    connection = Connection(fileno)
    participant: Participant = connection.recv()
    connection.send(participant.load())
    while True:
        rested, used = time.perf_counter(), time.process_time()
        try:
            task = connection.recv()
        except EOFError:
            return
        idle = (time.process_time() - used) / max(time.perf_counter() - rested, 1e-9)
        connection.send((participant.measure(task), idle if time.perf_counter() - rested > 1 else 0.0))
