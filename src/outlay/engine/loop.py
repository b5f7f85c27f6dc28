"""The runs at work: tick by tick, what they ask for is gathered, served in batches, and sent back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from outlay.engine.handle import Handle, Result
from outlay.engine.method import Method, Work
from outlay.engine.receipt import Receipt, receipt_of
from outlay.engine.registry import Workers
from outlay.engine.request import Request, Served, Stage, Worker
from outlay.engine.run import Run
from outlay.engine.seat import Seats
from outlay.engine.session import Session
from outlay.engine.worker import SOME_TEXT, ModelWorker
from outlay.errors import CacheFull

NOW_SECONDS = 0.02  # of a tick, at most, for quick work whose runs go on within the tick
FIRST_GROWTH = 8  # tokens that a run is expected to add to the caches at once, before it has
SPARE_SHARE = 0.1  # of the time, at most, for what services do of their own beside running text


@dataclass
class Waiting:
    """What was submitted and is not admitted yet."""

    method: Method
    session: Session
    handle: Handle
    number: int = 0  # in the order of submission
    held: Mapping[ModelWorker, int] = field(default_factory=dict)  # tokens in each model's cache when it was put back

    def left(self) -> bool:
        """Ends it where it was cancelled or its time is over; tells whether it has ended."""
        if self.handle.cancelled:
            self.session.close("cancelled")
        elif self.session.overdue():
            self.session.close("budget", "seconds")
        else:
            return False
        self.handle.end(result_of(self.session, self.method.label))
        return True


@dataclass
class Live:
    """A run in the engine: its generator and the requests that it waits for."""

    run: Run
    session: Session
    handle: Handle
    seats: Seats
    method: Method
    work: Work
    number: int
    waiting: list[Request] = field(default_factory=list)
    alone: bool = True  # the method yielded one request, not a list
    begun: bool = False
    gone: bool = False  # it has ended, or was put back
    unstarted: bool = False  # it has asked for something since jobs were last started
    growth: int = FIRST_GROWTH  # tokens that it has added to the caches at once, at most

    @property
    def ready(self) -> bool:
        """Whether the run has all that it waited for, or fails whatever else comes."""
        return all(request.done for request in self.waiting) or self.error is not None

    @property
    def hurries(self) -> bool:
        """Whether the run has no token yet, or a limit of seconds."""
        return not self.session.tokens or "seconds" in self.session.account.budget.caps

    @property
    def error(self) -> BaseException | None:
        """The error of a request that failed, with which the run fails."""
        return next((request.error for request in self.waiting if request.error is not None), None)

    @property
    def waits_for_jobs(self) -> bool:
        """Whether the run waits, and for jobs only, which are all started."""
        return (
            not self.ready
            and not self.unstarted
            and all(request.done or request.worker.stage == "job" for request in self.waiting)
        )

    def go_on(self) -> None:
        """Sends the method its results and takes what it asks for next. Raises `StopIteration` at its end."""
        answer = None
        if self.begun:
            results = [request.result for request in self.waiting]
            self.run.receive(self.waiting)
            answer = results[0] if self.alone else results
        self.begun = True
        asked = self.work.send(answer)
        requests = [asked] if isinstance(asked, Request) else asked
        if not isinstance(requests, list) or not all(isinstance(request, Request) for request in requests):
            raise TypeError(f"a method yields a request or a list of them, not {asked!r}")
        self.alone, self.waiting, self.unstarted = isinstance(asked, Request), requests, True

    def abandon(self) -> None:
        """Tells the workers that nobody waits for this run's requests any more."""
        asked: dict[Worker, list[Request]] = {}
        for request in self.waiting:
            if not request.done:
                asked.setdefault(request.worker, []).append(request)
        for worker, requests in asked.items():
            worker.abandon(requests)


class RunLoop:
    """Holds the runs at work, over the engine's workers."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.live: list[Live] = []
        self.put_back: list[Waiting] = []  # runs that wait for room, to be admitted again
        self.full = False  # whether the first that waits was found not to fit, and nothing has been given back since
        self._current: Live | None = None  # the run that goes on at present
        self._spare_seconds = 0.0  # that services may spend beside running text, once they are not below 0

    @property
    def wait_for_jobs(self) -> bool:
        """Whether all runs wait for jobs, so that a tick can do nothing before one of them ends."""
        return bool(self.live) and all(live.waits_for_jobs for live in self.live)

    def tick(self, admitted: Sequence[Waiting]) -> None:
        """Admits, sends every worker its requests, and lets each run go on with its results."""
        fresh = self._admit_all(admitted)
        for live in fresh:  # when all have their seats, so that each knows beside how many others it runs
            if not live.gone:
                self._resume(live)
        for live in list(self.live):
            if not live.gone:
                self._police(live)
        started = time.perf_counter()
        until = started + NOW_SECONDS
        self._serve_now(until)
        self._serve("job", self.live)
        self._serve("draft", self.live)
        self._serve_now(until)
        self._serve("pass", self.live)
        self._spare_seconds = min(0.0, self._spare_seconds + SPARE_SHARE * (time.perf_counter() - started))

    def spare(self) -> bool:
        """Lets a service do some work of its own, if the runs allow it: each has its first token, and none a limit of
        seconds. Tells whether there was any.
        """
        if self.live and (self._spare_seconds < 0 or any(live.hurries for live in self.live)):
            return False
        started = time.perf_counter()
        worked = any(service.spare() for service in self._workers.services)
        if self.live:  # an idle engine's time is nobody's
            self._spare_seconds -= time.perf_counter() - started
        return worked

    def fail(self, admitted: Sequence[Waiting], failure: Exception) -> None:
        """Ends all runs with an error, and those that were to be admitted: a mistake of ours that all must hear of."""
        failed: list[Live | Waiting] = [*self.live, *admitted, *self.put_back]
        self.live.clear()
        self.put_back.clear()
        self.full = False
        for each in failed:
            if not each.handle.done:
                each.handle.end(None, failure)
        for each in failed:
            if isinstance(each, Live):
                with suppress(Exception):  # a mistake may have left something that can't be released
                    each.abandon()
                with suppress(Exception):
                    each.seats.release(remember=False)

    def _serve_now(self, until: float) -> None:
        """Serves quick work, and what its runs ask for then, until there is none or the time is up."""
        asking = self._serve("now", self.live)
        while asking and time.perf_counter() < until:
            asking = self._serve("now", asking)

    def _serve(self, stage: Stage, runs: Sequence[Live]) -> list[Live]:
        """Has each worker of a stage do a step, and lets each run go on that then has all that it waited for.

        Args:
            stage: The stage.
            runs: Those whose requests are served.

        Returns:
            Those that asked for something and have not ended.
        """
        batches: dict[Worker, list[Request]] = {}
        asking = []
        for live in runs:
            asked = [request for request in live.waiting if not request.done and request.worker.stage == stage]
            for request in asked:
                batches.setdefault(request.worker, []).append(request)
            if asked:
                asking.append(live)
                live.unstarted &= stage != "job"
        for worker, requests in batches.items():
            self._advance(worker, requests)
        for live in asking:
            if live.gone:
                continue
            if cap := next((request.over_budget for request in live.waiting if request.over_budget), ""):
                live.run.close("budget", cap)
                self._end(live)
            elif live.ready:
                self._resume(live)
        return [live for live in asking if not live.handle.done]

    def _advance(self, worker: Worker, requests: Sequence[Request]) -> None:
        try:
            served = worker.advance(requests)
        except Exception as failure:  # fails those who asked, not the engine and not the others
            for request in requests:
                if not request.done:
                    request.fail(failure)
        else:
            if served is not None:
                self._trace(worker, served)

    def _trace(self, worker: Worker, served: Served) -> None:
        for live in self.live:
            trace, account = live.session.trace, live.session.account
            if trace is None:
                continue
            for report, rows in served.read:
                if account in rows:
                    trace.read(
                        "encoder" if worker.role == "target" else f"{worker.role} encoder", report, rows[account]
                    )
            if account in served.nodes:
                trace.passed(worker.role, served.report, served.nodes[account])

    def rescue(self, worker: ModelWorker) -> bool:
        """Puts back the youngest run at a model that is younger than the one that goes on at present.

        Returns:
            Whether there was one.
        """
        if self._current is None:
            return False
        younger = [live for live in self.live if live.number > self._current.number and worker in live.seats.models]
        if not younger:
            return False
        self._put_back(max(younger, key=lambda live: live.number))
        return True

    def _put_back(self, live: Live) -> None:
        """Has a run begin anew when there is room: it writes the same text, and delivers no part of it again."""
        models = live.seats.models
        before = {worker: worker.cache.in_use for worker in models}
        self.live.remove(live)
        live.gone, self.full = True, False
        with suppress(Exception):  # in the method's `finally`, or in a worker of its own
            live.abandon()
            live.work.close()
        live.seats.release(remember=False)
        held = {worker: before[worker] - worker.cache.in_use for worker in models}
        self.put_back.append(Waiting(live.method, live.session.again(), live.handle, live.number, held))

    def _admit_all(self, admitted: Sequence[Waiting]) -> list[Live]:
        """Admits runs in order, as far as there is room for them; the others wait on."""
        fresh: list[Live] = []
        for place, waiting in enumerate(admitted):
            try:
                for worker, held in waiting.held.items() if self.live else ():
                    if not worker.cache.has_room(held + SOME_TEXT):
                        raise CacheFull("what it held before doesn't fit yet")
                self._promise()
                live = self._admit(waiting)
            except CacheFull as failure:
                if self.live:
                    self.full = True
                    self.put_back += admitted[place:]
                    return fresh
                waiting.handle.end(None, failure)
            else:
                fresh += [live] if live is not None else []
        return fresh

    def _promise(self) -> None:
        """Has every model leave room for some text of each run that is at work."""
        for worker in self._workers.models:
            worker.promised = 0
        for live in self.live:
            some = min(live.session.max_tokens, SOME_TEXT)
            for worker in live.seats.models:
                worker.promised += max(0, some - len(live.session.tokens))

    def _admit(self, waiting: Waiting) -> Live | None:
        """Makes the run that its method decodes on. A failure fails this run alone.

        Raises:
            CacheFull: Where it has to wait for room.
        """
        method, session, handle = waiting.method, waiting.session, waiting.handle
        seats = Seats(session.account, self._workers)
        if session.trace is not None and session.timing.began is None:
            submission = session.submission
            session.trace.begun(method=method.label, model=submission.model.name, prompt=list(submission.prompt))
        try:
            run = method.start(session, seats)
            live = Live(run, session, handle, seats, method, method.decode(run), waiting.number)
        except CacheFull:
            seats.release(remember=False)
            raise
        except Exception as failure:
            seats.release(remember=False)
            handle.end(None, failure)
            return None
        session.begin()
        self.live.append(live)
        return live

    def _police(self, live: Live) -> None:
        """Ends a run that was cancelled or is out of time, before more is spent on it; lets one go on that waits for
        nothing.
        """
        if live.handle.cancelled:
            live.run.close("cancelled")
        elif live.session.overdue():
            live.run.close("budget", "seconds")
        if live.session.finish_reason is not None:
            self._end(live)
        elif live.ready:
            self._resume(live)

    def _resume(self, live: Live) -> None:
        """Sends a run its results and takes its next requests; a run that is finished, fails or returns is ended.

        One for which there is no room goes on later.
        """
        if live.error is not None:  # never inside the method, where a StopIteration would look like its own end
            self._end(live, live.error)
            return
        older = self._older(live)
        if older and not all(worker.cache.has_room(2 * live.growth) for worker in live.seats.models):
            return
        held = sum(worker.cache.in_use for worker in live.seats.models)
        self._current = live
        try:
            live.go_on()
        except StopIteration:
            if not live.session.goes_back:
                live.run.close("stop")
        except CacheFull:
            if older:
                self._put_back(live)
                return
            live.run.close("budget" if live.run.has_offer else "length")  # it has the whole cache
        except Exception as failure:  # whatever a method raises belongs to its caller, and must not stop the others
            self._end(live, failure)
            return
        finally:
            self._current = None
        if live.session.goes_back:
            self._go_back(live)
            return
        live.growth = max(live.growth, sum(worker.cache.in_use for worker in live.seats.models) - held)
        if live.session.ends_with is not None:
            live.run.close(*live.session.ends_with)
        if live.session.finish_reason is not None:
            self._end(live)

    def _go_back(self, live: Live) -> None:
        """Has a method begin anew behind what is left of its text; what was computed of it stays in the cache."""
        live.abandon()
        live.work.close()
        live.seats.release(remember=True)
        live.session.begin_again()
        try:
            live.run = live.method.run_type(live.session, live.seats)
        except CacheFull:
            self._put_back(live)
            return
        live.work, live.waiting, live.begun = live.method.decode(live.run), [], False
        self._resume(live)

    def _older(self, live: Live) -> bool:
        """Tells whether an older run holds room where this one does."""
        models = live.seats.models
        return any(other.number < live.number and models & other.seats.models for other in self.live)

    def _end(self, live: Live, error: BaseException | None = None) -> None:
        session = live.session
        self.live.remove(live)
        live.gone, self.full = True, False
        try:
            live.abandon()
            live.work.close()
        except Exception as failure:  # in the method's `finally`, or in a worker of its own
            error = error or failure
        if error is None:
            live.run.close("stop")
            error = session.trace.error if session.trace is not None else None
        live.seats.release(remember=error is None)
        live.handle.end(result_of(session, live.method.label) if error is None else None, error)


def seconds_left(runs: Sequence[Waiting | Live]) -> float | None:
    """Returns the seconds until the first run is out of time; None where no run has a limit."""
    soonest = min((run.session.seconds_left() for run in runs), default=math.inf)
    return max(soonest, 0.0) if soonest < math.inf else None


def result_of(session: Session, method: str) -> Result:
    """Returns the result of a run that has ended; `method` is its name with its options."""
    return Result(
        text=session.text,
        tokens=session.tokens,
        finish_reason=session.finish_reason or "stop",
        ledger=session.ledger,
        method=method,
        model=session.submission.model.name,
        origins=session.origins,
        prompt_tokens=len(session.submission.input) + len(session.submission.prompt),
        cached_tokens=session.cached_tokens,
        timing=session.timing,
        cap=session.cap,
        logprobs=session.logprobs if session.submission.options.logprobs is not None else None,
        alternatives=session.alternatives,
        receipt=_receipt_of(session, method),
        facts=session.facts,
    )


def _receipt_of(session: Session, method: str) -> Receipt | None:
    if session.chain is None:
        return None
    reason = session.finish_reason or "stop"
    return receipt_of(session.submission, method, session.kv_dtype, session.tokens, reason, session.chain)
