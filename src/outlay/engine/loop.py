"""The runs at work: tick by tick, what they ask for is gathered, served in batches, and sent back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from outlay.engine.handle import Handle, Result
from outlay.engine.method import Method, Work
from outlay.engine.registry import Workers
from outlay.engine.request import Request, Served, Stage, Worker
from outlay.engine.run import Run
from outlay.engine.seat import Seats
from outlay.engine.session import Session

NOW_SECONDS = 0.02  # of a tick, at most, for quick work whose runs go on within the tick


@dataclass
class Waiting:
    """What was submitted and is not admitted yet."""

    method: Method
    session: Session
    handle: Handle


@dataclass
class Live:
    """A run in the engine: its generator and the requests that it waits for."""

    run: Run
    session: Session
    handle: Handle
    seats: Seats
    label: str
    work: Work
    waiting: list[Request] = field(default_factory=list)
    alone: bool = True  # the method yielded one request, not a list
    begun: bool = False

    @property
    def ready(self) -> bool:
        """Whether the run has all that it waited for, or fails whatever else comes."""
        return all(request.done for request in self.waiting) or self.error is not None

    @property
    def error(self) -> BaseException | None:
        """The error of a request that failed, with which the run fails."""
        return next((request.error for request in self.waiting if request.error is not None), None)

    @property
    def waits_for_jobs(self) -> bool:
        """Whether the run waits, and for jobs only."""
        return not self.ready and all(request.done or request.worker.stage == "job" for request in self.waiting)

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
        self.alone, self.waiting = isinstance(asked, Request), requests

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

    @property
    def wait_for_jobs(self) -> bool:
        """Whether all runs wait for jobs, so that a tick can do nothing before one of them ends."""
        return bool(self.live) and all(live.waits_for_jobs for live in self.live)

    def seconds_left(self) -> float | None:
        """Returns the seconds until the first run is out of time; None where no run has a limit."""
        left = []
        for live in self.live:
            live.session.tick()
            left.append(live.run.left("seconds"))
        soonest = min(left, default=float("inf"))
        return max(soonest, 0.0) if soonest < float("inf") else None

    def tick(self, admitted: Sequence[Waiting]) -> None:
        """Admits, sends every worker its requests, and lets each run go on with its results."""
        fresh = [live for waiting in admitted if (live := self._admit(waiting)) is not None]
        for live in fresh:  # when all have their seats, so that each knows beside how many others it runs
            self._resume(live)
        for live in list(self.live):
            self._police(live)
        until = time.perf_counter() + NOW_SECONDS
        self._serve_now(until)
        self._serve("job", self.live)
        self._serve("draft", self.live)
        self._serve_now(until)
        self._serve("pass", self.live)

    def fail(self, admitted: Sequence[Waiting], failure: Exception) -> None:
        """Ends all runs with an error, and those that were to be admitted: a mistake of ours that all must hear of."""
        failed: list[Live | Waiting] = [*self.live, *admitted]
        self.live.clear()
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
        for worker, requests in batches.items():
            self._advance(worker, requests)
        for live in asking:
            if any(request.over_budget for request in live.waiting):
                live.run.close("budget")
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
            if live.session.trace is not None and live.session.account in served.nodes:
                live.session.trace.passed(worker.role, served.report, served.nodes[live.session.account])

    def _admit(self, waiting: Waiting) -> Live | None:
        """Makes the run that its method decodes on. A failure, a full cache above all, fails this run alone."""
        method, session, handle = waiting.method, waiting.session, waiting.handle
        seats = Seats(session.account, self._workers)
        if session.trace is not None:
            submission = session.submission
            session.trace.begun(method=method.label, model=submission.model.name, prompt=list(submission.prompt))
        try:
            run = method.run_type(session, seats)
            live = Live(run, session, handle, seats, method.label, method.decode(run))
        except Exception as failure:
            seats.release(remember=False)
            handle.end(None, failure)
            return None
        self.live.append(live)
        return live

    def _police(self, live: Live) -> None:
        """Ends a run that was cancelled or is out of time, before more is spent on it; lets one go on that waits for
        nothing.
        """
        live.session.tick()
        if live.handle.cancelled:
            live.run.close("cancelled")
        elif live.run.left("seconds") <= 0:
            live.run.close("budget")
        if live.session.finish_reason is not None:
            self._end(live)
        elif live.ready:
            self._resume(live)

    def _resume(self, live: Live) -> None:
        """Sends a run its results and takes its next requests; a run that is finished, fails or returns is ended."""
        if live.error is not None:  # never inside the method, where a StopIteration would look like its own end
            self._end(live, live.error)
            return
        try:
            live.go_on()
        except StopIteration:
            live.run.close("stop")
        except Exception as failure:  # whatever a method raises belongs to its caller, and must not stop the others
            self._end(live, failure)
            return
        if live.session.ends_with is not None:
            live.run.close(live.session.ends_with)
        if live.session.finish_reason is not None:
            self._end(live)

    def _end(self, live: Live, error: BaseException | None = None) -> None:
        session = live.session
        self.live.remove(live)
        try:
            live.abandon()
            live.work.close()
        except Exception as failure:  # in the method's `finally`, or in a worker of its own
            error = error or failure
        if error is None:
            live.run.close("stop")
            error = session.trace.error if session.trace is not None else None
        live.seats.release(remember=error is None)
        live.handle.end(self._result(live) if error is None else None, error)

    @staticmethod
    def _result(live: Live) -> Result:
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
            facts=session.facts,
        )
