"""The runs of one request: submitted off the event loop, followed together, and cancelled wherever the request ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from outlay.budget import Budget, Ledger
from outlay.engine.handle import Handle
from outlay.engine.session import TextChunk
from outlay.models.reasoning import thinks_already
from outlay.serve.answers import Answer, AnswerReader
from outlay.serve.asked import Asked
from outlay.serve.errors import ApiError
from outlay.serve.settings import Limits
from outlay.serve.text_run import TextRun
from outlay.serve.thoughts import Thoughts
from outlay.serve.tools import CallParser

SEEDS = 1 << 63


class Filled(NamedTuple):
    """A round of a canvas."""

    number: int
    """From 1 on."""
    texts: dict[int, str]
    """What it wrote at positions of the text."""


class Told(NamedTuple):
    """Something that happened in a request's runs."""

    place: int
    """Which text of the request."""
    chunk: TextChunk | None = None
    """Text that was added."""
    filled: Filled | None = None
    """A round of its canvas."""
    answer: Answer | None = None
    """The end of the text."""


class Generation:
    """All runs of one request.

    Args:
        asked: what is asked for.
        limits: the server's.
        pool: where prompts are encoded and handed in.
        deadline: when the request's time ends, on the clock of `time.monotonic`.
        rounds: whether to tell of the rounds of a canvas.
    """

    def __init__(self, asked: Asked, limits: Limits, pool: Executor, deadline: float, *, rounds: bool = False) -> None:
        self.asked, self._limits, self._pool, self._deadline = asked, limits, pool, deadline
        self._rounds = rounds and asked.hosted.lm.model.writes_canvas
        self._handles: list[Handle] = []
        self._runs: dict[int, TextRun] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._happened: asyncio.Queue[Told | BaseException | None] = asyncio.Queue()
        self._prompts: list[list[int]] = []

    async def start(self) -> None:
        """Encodes the prompts and hands in all runs. Raises `ApiError` or `UsageError` for what can't be used."""
        self._prompts = await self._off_loop(self.asked.encode)
        limit = self._limits.prompt_tokens
        longest = max(map(len, self._prompts))
        if limit is not None and longest > limit:
            message = f"the prompt has {longest} tokens, but this server takes at most {limit}"
            raise ApiError(400, message, code="context_length_exceeded")
        for place, prompt in enumerate(self._prompts):
            for copy in range(self.asked.copies):
                index = place * self.asked.texts + copy
                seed = (self.asked.seed + copy) % SEEDS
                submit = partial(self.submit, index, self.asked.questions[place])
                self._runs[index] = TextRun(self.asked, index, prompt, seed, self.thoughts(prompt), submit)
        for run in self._runs.values():
            await run.start()
        self._tasks = [asyncio.create_task(self._follow(run)) for run in self._runs.values()]

    def reader(self, index: int) -> AnswerReader:
        """Returns what parts the text with this index into reasoning, content and tool calls."""
        asked = self.asked
        calls = CallParser(asked.form, asked.tools, asked.begun) if asked.form is not None else None
        thoughts = self.thoughts(self._prompts[index // asked.texts])
        return AnswerReader(asked.hosted.lm.model.tokenizer, thoughts, calls, asked.one_call)

    def thoughts(self, prompt: Sequence[int]) -> Thoughts | None:
        """Returns what tells reasoning from the answer; None for a model that does not think, and outside of a chat."""
        tags = self.asked.hosted.tags
        if tags is None or not self.asked.chat:
            return None
        return Thoughts(tags, thinks_already(self.asked.hosted.lm.model.tokenizer, tags, prompt))

    async def events(self, keep_alive: float) -> AsyncGenerator[Told | None]:
        """Yields what happens until all texts have ended; None where nothing did for `keep_alive` seconds.

        Raises the first error of a run.
        """
        left = self.asked.texts * self.asked.prompts
        alarm = _Alarm(keep_alive, lambda: self._happened.put_nowait(None))
        try:
            while left:
                told = await self._happened.get()
                alarm.put_off()
                if isinstance(told, BaseException):
                    raise told
                yield told
                left -= told is not None and told.answer is not None
        finally:
            alarm.stop()

    def enough(self, index: int) -> None:
        """Ends a text whose rest would not be shown."""
        if index in self._runs:
            self._runs[index].enough()

    def ledger(self) -> Ledger:
        """What all runs have spent so far."""
        return sum((handle.ledger for handle in self._handles), Ledger())

    async def close(self) -> None:
        """Ends what still runs."""
        for handle in self._handles:
            handle.cancel()
        for task in self._tasks:
            task.cancel()

    async def submit(
        self, index: int, question: str, prompt: Sequence[int], seed: int, max_tokens: int, spent: Ledger | None
    ) -> Handle:
        """Hands in a run with what the budget and the deadline leave, off the event loop.

        Where the caller is cancelled meanwhile, so is the run.

        Args:
            index: which text of the request it is.
            question: what the prompt asks, as text.
            prompt: token ids.
            seed: fixes its draws.
            max_tokens: new tokens at most.
            spent: what an earlier run of the same text has spent.
        """
        asked, options = self.asked, dict(self.asked.options)
        if "constraint" in options and (thoughts := self.thoughts(prompt)) is not None:
            options["constraint"] = thoughts.constrained(options["constraint"])
        handed_in = asyncio.get_running_loop().run_in_executor(
            self._pool,
            partial(
                asked.hosted.lm.submit,
                prompt,
                method=asked.method,
                draft=asked.draft,
                scorer=asked.scorer,
                cache=asked.cache,
                question=question,
                budget=self._left(spent),
                seed=seed,
                max_tokens=max_tokens,
                trace=self._listener(index) if self._rounds else None,
                **options,
            ),
        )
        try:
            handle = await asyncio.shield(handed_in)
        except asyncio.CancelledError:
            handed_in.add_done_callback(_cancel)
            raise
        self._handles.append(handle)
        return handle

    def _listener(self, index: int) -> Callable[[dict[str, Any]], None]:
        """Returns what is told of a run's events, in the engine's thread, and passes rounds of its canvas on."""
        loop, begin = asyncio.get_running_loop(), 0

        def heard(event: dict[str, Any]) -> None:
            nonlocal begin
            if event["event"] == "canvas":
                begin = event["begin"]
            elif event["event"] == "fill":
                cells = [cell for cell in event["cells"] if cell["filled"]]
                filled = Filled(event["round"], {cell["position"] - begin: _spelled(cell) for cell in cells})
                with suppress(RuntimeError):  # the server has ended
                    loop.call_soon_threadsafe(self._happened.put_nowait, Told(index, filled=filled))

        return heard

    def _left(self, spent: Ledger | None) -> Budget:
        caps = {name: cap - getattr(spent, name, 0) for name, cap in self.asked.budget.caps.items()}
        caps["seconds"] = min(caps.get("seconds", float("inf")), self._deadline - time.monotonic())
        return Budget(**{name: max(cap, 1e-9) for name, cap in caps.items()})

    async def _off_loop(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def _follow(self, run: TextRun) -> None:
        try:
            async for chunk in run.chunks():
                self._happened.put_nowait(Told(run.index, chunk=chunk))
            answer = run.answer()
            self._happened.put_nowait(Told(run.index, answer=answer))
            for other in range(1, self.asked.texts if self.asked.copies == 1 else 1):
                self._tell_alternative(run.index, other, answer)
        except BaseException as error:
            self._happened.put_nowait(error)

    def _tell_alternative(self, first: int, other: int, answer: Answer) -> None:
        """Tells of a text that a run proposed beside its own; of its own once more where it proposed none."""
        text, tokens = answer.text, answer.tokens
        if other < len(answer.alternatives):
            text, tokens = answer.alternatives[other].text, answer.alternatives[other].tokens
        again = Answer(text, tokens, answer.finish_reason, Ledger(), answer.method, 0, 0, answer.cap)
        self._happened.put_nowait(Told(first + other, chunk=TextChunk(text, "", tuple(tokens))))
        self._happened.put_nowait(Told(first + other, answer=again))


class _Alarm:
    """Rings each time it was not put off for some seconds. One timer stands all the time, so to put it off is cheap."""

    def __init__(self, seconds: float, ring: Callable[[], None]) -> None:
        self._seconds, self._ring, self._loop = seconds, ring, asyncio.get_running_loop()
        self._since = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._look)

    def put_off(self) -> None:
        """Begins the seconds anew."""
        self._since = self._loop.time()

    def stop(self) -> None:
        """Ends it."""
        self._timer.cancel()

    def _look(self) -> None:
        if self._loop.time() - self._since >= self._seconds:
            self._ring()
            self.put_off()
        self._timer = self._loop.call_at(self._since + self._seconds, self._look)


def _spelled(cell: dict[str, Any]) -> str:
    """Returns what a cell of a canvas writes; a part of a character shows as such, and a special token by its name."""
    return str(cell.get("text") or cell.get("name") or "\N{REPLACEMENT CHARACTER}")


def _cancel(handed_in: asyncio.Future[Handle]) -> None:
    """Cancels a run whose caller left while it was handed in."""
    if not handed_in.cancelled() and handed_in.exception() is None:
        handed_in.result().cancel()
