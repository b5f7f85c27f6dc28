"""The runs at work: tick by tick, what they ask for is gathered, served in batches, and sent back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from outlay.engine.handle import Handle, Result
from outlay.engine.method import Method, Work
from outlay.engine.request import Request, Served, Stage, Worker
from outlay.engine.seat import Seat
from outlay.engine.session import Session
from outlay.engine.tree_run import TreeRun
from outlay.engine.worker import ModelWorker
from outlay.models.load import Model

RESERVE = 512  # tokens of text for which a run asks the cache for room at once; more comes when it is needed


@dataclass
class Waiting:
    """What was submitted and is not admitted yet."""

    method: Method
    session: Session
    handle: Handle


@dataclass
class Live:
    """A run in the engine: its generator and the requests that it waits for."""

    run: TreeRun
    session: Session
    handle: Handle
    seats: list[Seat]
    label: str
    work: Work
    waiting: list[Request] = field(default_factory=list)
    alone: bool = True  # the method yielded one request, not a list


class RunLoop:
    """Holds the runs at work. `worker(model, role)` gives the worker that runs a model as "target" or "draft"."""

    def __init__(self, worker: Callable[[Model, str], ModelWorker]) -> None:
        self._worker = worker
        self.live: list[Live] = []

    def tick(self, admitted: Sequence[Waiting]) -> None:
        """Admits, sends every worker its requests, and lets each run go on with its results."""
        fresh = [live for waiting in admitted if (live := self._admit(waiting)) is not None]
        for live in fresh:  # when all have their seats, so that each knows beside how many others it runs
            self._resume(live)
        for live in self.live:
            self._police(live)
        # Drafts first: a run that drafts in one pass then takes part in the target's pass of the same tick.
        if drafts := self._pending("draft"):
            self._serve(drafts)
        self._serve(self._pending("pass"))

    def fail(self, admitted: Sequence[Waiting], failure: Exception) -> None:
        """Ends all runs with an error, and those that were to be admitted: a mistake of ours that all must hear of."""
        failed: list[Live | Waiting] = [*self.live, *admitted]
        self.live.clear()
        for each in failed:
            if not each.handle.done:
                each.handle.end(None, failure)
        for each in failed:
            for seat in each.seats if isinstance(each, Live) else ():
                with suppress(Exception):  # a mistake may have left something that can't be released
                    seat.release(remember=False)

    def _pending(self, stage: Stage) -> list[tuple[Worker, list[Request]]]:
        """Returns the workers of a stage that are asked for something, with what they are asked."""
        batches: dict[int, tuple[Worker, list[Request]]] = {}
        for live in self.live:
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
        for live in list(self.live):
            if any(request.over_budget for request in live.waiting):
                live.run.close("budget")
            if live.session.finish_reason is not None:
                self._end(live)
            elif all(request.done for request in live.waiting):
                self._resume(live)

    def _trace(self, worker: Worker, served: Served) -> None:
        for live in self.live:
            if live.session.trace is not None and live.session.account in served.nodes:
                live.session.trace.passed(worker.role, served.report, served.nodes[live.session.account])

    def _admit(self, waiting: Waiting) -> Live | None:
        """Gives a run its seats and starts its method. A failure, a full cache above all, fails this run alone."""
        method, session, handle = waiting.method, waiting.session, waiting.handle
        submission, seats = session.submission, list[Seat]()
        try:
            worker = self._worker(submission.model, "target")
            seats.append(self._seat(session, worker))
            if submission.draft is not None and submission.draft.model is not None:
                draft_worker = self._worker(submission.draft.model, "draft")
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
        live = Live(run, session, handle, seats, method.label, method.decode(run))
        self.live.append(live)
        return live

    def _seat(self, session: Session, worker: ModelWorker) -> Seat:
        """Returns a run's seat at a model, which holds the prompt."""
        tree = worker.plant(session.submission.prompt, reserve=min(session.max_tokens, RESERVE))
        return Seat(session.account, worker, tree, raw_logits=session.submission.options.logprobs is not None)

    def _police(self, live: Live) -> None:
        """Ends a run that was cancelled or is out of time, before more is spent on it."""
        live.session.tick()
        if live.session.finish_reason is None:
            if live.handle.cancelled:
                live.run.close("cancelled")
            elif live.run.left("seconds") <= 0:
                live.run.close("budget")

    def _resume(self, live: Live) -> None:
        """Sends a run its results and takes its next requests; a run that is finished, fails or returns is ended."""
        error = next((request.error for request in live.waiting if request.error is not None), None)
        if error is not None:  # never inside the method, where a StopIteration would look like its own end
            self._end(live, error)
            return
        results = [request.result for request in live.waiting]
        live.run.receive(live.waiting)
        try:
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

    def _end(self, live: Live, error: BaseException | None = None) -> None:
        session = live.session
        self.live.remove(live)
        live.work.close()
        if error is None:
            live.run.close("stop")
            error = session.trace.error if session.trace is not None else None
        for seat in live.seats:
            seat.release(remember=error is None)
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
        )
