"""Work of other kinds: quick functions within the tick, slow ones beside it, and who hears of what goes wrong."""

from __future__ import annotations

import itertools
import os
import statistics
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

import outlay
from outlay import About, Budget, Ledger, Method
from outlay.engine.functions import FunctionWorker, ProcessWorker, ThreadWorker
from outlay.engine.request import Request, Worker
from outlay.testing import tiny_lm

ABOUT = About("asking", "asks for other work", "", "test", "", "")


@dataclass(frozen=True)
class Checks(Method):
    """Asks for `count` checks, one after the other, and writes a token for each that holds."""

    count: int = 40

    about: ClassVar[About] = ABOUT

    def decode(self, run):
        checker = run.service("even", lambda wake: FunctionWorker(is_even, counts="checks"))
        before, started = run.target.last_pass.number, time.perf_counter()
        for number in range(self.count):
            if (yield checker.call(run, number)):
                run.commit(65)
        run.count(passes_meanwhile=run.target.last_pass.number - before, took=time.perf_counter() - started)


def is_even(number):
    return number % 2 == 0


@dataclass(frozen=True)
class Jobs(Method):
    """Has a slow function called `count` times at once, and writes what it returns."""

    make: Any
    count: int = 1
    arguments: tuple = ()

    about: ClassVar[About] = ABOUT

    def decode(self, run):
        worker = run.service(self.make, self.make)
        tokens = yield [worker.call(run, *self.arguments) for _ in range(self.count)]
        for token in tokens:
            run.commit(token)


@dataclass(frozen=True)
class JobAfterPass(Jobs):
    """Writes a token, and then has the slow function called."""

    def decode(self, run):
        run.commit((yield from run.next_token(run.tip)))
        yield from super().decode(run)


@dataclass
class Gate:
    """A slow function: it returns when it is opened."""

    opened: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __call__(self):
        self.entered.release()
        assert self.opened.wait(20)
        return 65

    def worker(self, wake):
        return ThreadWorker(self, wake, counts="executions")

    __hash__ = object.__hash__


def test_quick_checks_are_served_within_the_tick_and_counted():
    lm = tiny_lm()
    with lm.engine.together():
        greedy = lm.submit("Once", max_tokens=20, ignore_eos=True)
        checked = lm.submit("Twice", method=Checks(), max_tokens=100)
    result = checked.result(20)
    assert (len(result.tokens), result.ledger.checks, result.finish_reason) == (20, 40, "stop")
    assert result.ledger.extras["passes_meanwhile"] == 0
    assert len(greedy.result(20).tokens) == 20
    assert [worker.role for worker in lm.engine.workers] == ["target", "function"]
    assert lm.engine.workers[1].ledger.checks == 40


def test_forty_quick_checks_take_less_than_ten_milliseconds_from_a_run_beside_them():
    """They are served between two of its passes, so what they take of that tick is what they add to it."""
    lm = tiny_lm()
    greedy = lm.submit("Once", max_tokens=400, ignore_eos=True)
    added = [lm.generate("Twice", method=Checks()).ledger.extras["took"] for _ in range(10)]
    greedy.cancel()
    assert min(added) < 0.010


def test_a_run_that_never_stops_asking_for_checks_leaves_time_for_the_others():
    lm = tiny_lm()
    endless = lm.submit("x", method=Checks(10**9), max_tokens=500)
    assert len(lm.generate("Once", max_tokens=5, ignore_eos=True).tokens) == 5
    endless.cancel()
    assert endless.result(20).finish_reason in ("cancelled", "length")


def test_checks_of_several_runs_are_served_in_turns():
    served = []

    @dataclass(frozen=True)
    class Many(Method):
        about: ClassVar[About] = ABOUT

        def decode(self, run):
            worker = run.service("note", lambda wake: FunctionWorker(served.append))
            yield [worker.call(run, run.prompt[0]) for _ in range(3)]

    lm = tiny_lm()
    with lm.engine.together():
        handles = [lm.submit(prompt, method=Many()) for prompt in "ab"]
    for handle in handles:
        handle.result(20)
    assert served == [*lm.encode("a"), *lm.encode("b")] * 3


def test_a_slow_function_does_not_hold_the_others():
    lm, gate = tiny_lm(), Gate()
    slow = lm.submit("x", method=Jobs(gate.worker), max_tokens=5)
    assert gate.entered.acquire(timeout=20)
    assert len(lm.generate("Once", max_tokens=20, ignore_eos=True).tokens) == 20
    assert not slow.done
    gate.opened.set()
    result = slow.result(20)
    assert (result.tokens, result.ledger.executions) == ([65], 1)


def test_a_job_that_is_asked_for_after_a_pass_is_started_before_the_engine_sleeps():
    method = JobAfterPass(lambda wake: ThreadWorker(lambda: 65, wake))
    assert tiny_lm().submit("x", method=method, max_tokens=4).result(20).tokens[1:] == [65]


def nap(seconds):
    time.sleep(seconds)
    return 65


@pytest.mark.slow
def test_the_gaps_between_passes_beside_a_scorer_of_seconds_are_at_most_twice_their_median(default_path):
    """On a machine that does other things too: the best of some texts."""
    lm, ratios = outlay.load(default_path), []
    scorer = Jobs(lambda wake: ThreadWorker(nap, wake, counts="scores"), arguments=(2.0,))
    for _ in range(8):
        events = []
        scored = lm.submit("x", method=scorer, max_tokens=1)
        lm.submit("Once", max_tokens=40, ignore_eos=True, trace=events.append).result(60)
        times = [event["time"] for event in events if event["event"] == "pass"][1:]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        ratios.append(max(gaps) / statistics.median(gaps))
        assert scored.result(20).ledger.scores == 1
    assert min(ratios) <= 2


def test_jobs_of_several_runs_and_of_one_go_on_together():
    lm, gate = tiny_lm(), Gate()
    handles = [lm.submit("x", method=Jobs(gate.worker, count=2), max_tokens=5) for _ in range(2)]
    for _ in range(4):
        assert gate.entered.acquire(timeout=20)
    gate.opened.set()
    assert [handle.result(20).tokens for handle in handles] == [[65, 65]] * 2
    assert lm.engine.workers[1].ledger == Ledger(executions=4)


def test_an_engine_that_waits_for_jobs_only_sleeps(monkeypatch):
    lm, gate, ticks = tiny_lm(), Gate(), []
    tick = lm.engine._runs.tick
    monkeypatch.setattr(lm.engine._runs, "tick", lambda admitted: (ticks.append(1), tick(admitted)))
    slow = [lm.submit("x", method=Jobs(gate.worker), max_tokens=5) for _ in range(3)]
    for _ in slow:
        assert gate.entered.acquire(timeout=20)
    clock = time.pthread_getcpuclockid(lm.engine._thread.ident)  # other engines of the process may be at work
    before, computed = len(ticks), time.clock_gettime(clock)
    time.sleep(0.5)
    assert time.clock_gettime(clock) - computed < 0.02 * 0.5
    assert len(ticks) - before <= 1
    gate.opened.set()
    assert [handle.result(20).tokens for handle in slow] == [[65]] * 3


@pytest.mark.parametrize("how", ["cancelled", "budget"])
def test_a_run_that_waits_for_a_job_ends_when_it_has_to(how):
    lm, gate = tiny_lm(), Gate()
    budget = Budget(seconds=0.2) if how == "budget" else None
    handle = lm.submit("x", method=Jobs(gate.worker), budget=budget, max_tokens=5)
    assert gate.entered.acquire(timeout=20)
    if how == "cancelled":
        handle.cancel()
    assert handle.result(5).finish_reason == how
    gate.opened.set()
    assert len(lm.generate("Once", max_tokens=2, ignore_eos=True).tokens) == 2
    assert not lm.engine.workers[1]._running, "nothing is left of the job"


def test_what_is_submitted_while_the_engine_sleeps_starts_at_once():
    lm, gate = tiny_lm(max_runs=2), Gate()
    slow = lm.submit("x", method=Jobs(gate.worker), max_tokens=5)
    assert gate.entered.acquire(timeout=20)
    started = time.perf_counter()
    assert len(lm.generate("Once", max_tokens=1, ignore_eos=True).tokens) == 1
    assert time.perf_counter() - started < 2
    gate.opened.set()
    slow.result(20)


def token_of(text):
    return ord(text) if len(text) == 1 else os._exit(1)


def token_in_process(wake):
    return ProcessWorker(token_of, wake, processes=1, counts="executions")


@pytest.mark.slow
def test_a_function_may_run_in_processes_and_one_that_dies_is_replaced():
    lm = tiny_lm()
    assert lm.generate("x", method=Jobs(token_in_process, arguments=("A",)), max_tokens=5).tokens == [65]
    with pytest.raises(BrokenProcessPool):
        lm.generate("x", method=Jobs(token_in_process, arguments=("die",)), max_tokens=5)
    assert lm.generate("x", method=Jobs(token_in_process, arguments=("B",)), max_tokens=5).tokens == [66]
    lm.engine.close()


class Odd(Exception):
    """An error of a function."""


def raising(error):
    def function(*_):
        raise error

    return function


@pytest.mark.parametrize("error", [Odd("odd"), StopIteration(), SystemExit(3)], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", ["now", "job"])
def test_an_error_of_a_function_fails_the_run_that_asked_and_no_other(kind, error):
    make = {
        "now": lambda wake: FunctionWorker(raising(error)),
        "job": lambda wake: ThreadWorker(raising(error), wake),
    }[kind]
    lm = tiny_lm()
    with lm.engine.together():
        other = lm.submit("Once", max_tokens=20, ignore_eos=True)
        failing = lm.submit("x", method=Jobs(make), max_tokens=5)
    with pytest.raises(type(error)):
        failing.result(20)
    assert len(other.result(20).tokens) == 20
    assert lm.engine.models[0].seated == 0


def test_a_run_fails_with_its_first_error_and_does_not_wait_for_the_rest():
    lm, gate = tiny_lm(), Gate()

    @dataclass(frozen=True)
    class Both(Method):
        about: ClassVar[About] = ABOUT

        def decode(self, run):
            slow = run.service("slow", gate.worker)
            bad = run.service("bad", lambda wake: FunctionWorker(raising(Odd("odd"))))
            yield [slow.call(run), bad.call(run)]

    with pytest.raises(Odd):
        lm.generate("x", method=Both())
    gate.opened.set()


@pytest.mark.parametrize(("entry", "cap"), [("checks", 7), ("executions", 1)])
def test_caps_on_calls_are_kept_exactly(entry, cap):
    gate = Gate()
    gate.opened.set()
    method = Checks() if entry == "checks" else Jobs(gate.worker, count=3)
    result = tiny_lm().generate("x", method=method, budget=Budget(**{entry: cap}), max_tokens=100)
    assert (result.finish_reason, getattr(result.ledger, entry)) == ("budget", cap)


def test_services_are_made_once_and_closed_with_the_engine():
    made, closed = [], []

    class Noted(FunctionWorker):
        def __init__(self):
            super().__init__(is_even)
            made.append(self)

        def close(self):
            closed.append(self)

    @dataclass(frozen=True)
    class Asks(Method):
        about: ClassVar[About] = ABOUT

        def decode(self, run):
            assert (yield run.service("noted", lambda wake: Noted()).call(run, 2))

    lm = tiny_lm()
    for _ in range(2):
        lm.generate("x", method=Asks())
    assert lm.engine.workers[1:] == made
    assert not closed
    lm.engine.close()
    assert (closed, len(made), len(lm.engine.workers)) == (made, 1, 1)


@dataclass(eq=False)
class Sum(Request):
    """A kind of work that the engine has never heard of."""

    numbers: tuple[int, ...]


class SumWorker(Worker):
    role, stage = "sum", "pass"

    def __init__(self):
        self.ledger, self.batches = Ledger(), []

    def advance(self, requests):
        self.batches.append(len(requests))
        for request in requests:
            request.finish(sum(request.numbers))


def test_any_request_may_bring_its_own_worker_which_serves_all_runs_of_a_tick_together():
    worker = SumWorker()

    @dataclass(frozen=True)
    class Sums(Method):
        about: ClassVar[About] = ABOUT

        def decode(self, run):
            logits, total = yield [run.target.forward([run.tip]), Sum(run.account, worker, (60, 5))]
            assert logits.shape == (1, 257)
            run.commit(total)

    lm = tiny_lm()
    with lm.engine.together():
        handles = [lm.submit("x", method=Sums(), max_tokens=5) for _ in range(3)]
    assert [handle.result(20).tokens for handle in handles] == [[65]] * 3
    assert worker.batches == [3]


def test_a_method_may_ask_for_nothing_and_go_on():
    @dataclass(frozen=True)
    class Nothing(Method):
        about: ClassVar[About] = ABOUT

        def decode(self, run):
            assert (yield []) == []
            run.commit(65)

    assert tiny_lm().generate("x", method=Nothing(), max_tokens=3).tokens == [65]


def test_an_error_while_a_method_is_stopped_fails_its_run_alone():
    @dataclass(frozen=True)
    class Untidy(Method):
        about: ClassVar[About] = ABOUT

        def decode(self, run):
            try:
                yield from iter(lambda: run.target.forward([run.tip]), None)
            finally:
                raise Odd("in its finally")

    lm = tiny_lm()
    other = lm.submit("Once", max_tokens=20, ignore_eos=True)
    with pytest.raises(Odd):
        lm.generate("x", method=Untidy(), budget=Budget(target_passes=2))
    assert len(other.result(20).tokens) == 20
    assert lm.engine.models[0].seated == 0


@pytest.mark.parametrize("junk", [None, 3, [None]])
def test_a_method_that_yields_no_request_fails_alone(junk):
    @dataclass(frozen=True)
    class Junk(Method):
        about: ClassVar[About] = ABOUT

        def decode(self, run):
            yield junk

    lm = tiny_lm()
    other = lm.submit("Once", max_tokens=20, ignore_eos=True)
    with pytest.raises(TypeError, match="yields a request or a list of them"):
        lm.generate("x", method=Junk())
    assert len(other.result(20).tokens) == 20
