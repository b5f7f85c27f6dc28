"""Scorers that are Python functions `score(prompt, texts)`: quick ones within the tick, others in a process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from outlay.engine.functions import Call, FunctionWorker, ProcessWorker
from outlay.engine.request import Request
from outlay.engine.tree_run import TreeRun
from outlay.rewards.file import module_of, score_by, score_by_file
from outlay.rewards.scorer import RunScorer, Scorer, TextRunScorer

Ask = Callable[[TreeRun, Sequence[str]], Call]


@dataclass(frozen=True, eq=False)
class FunctionScorer(Scorer):
    """Calls `score(prompt, texts)` within the tick, so it must take milliseconds at most."""

    score: Callable[[str, list[str]], Any]
    """Returns a reward from 0 to 1 for each text; it may be an iterable of any kind."""

    def begin(self, run: TreeRun, step: str = "") -> RunScorer:
        return _FunctionRunScorer(run, self._ask)

    def _ask(self, run: TreeRun, texts: Sequence[str]) -> Call:
        name = getattr(self.score, "__name__", "the scorer")
        worker = run.service(
            ("scorer", self.score),
            lambda wake: FunctionWorker(partial(score_by, self.score, name), counts="scores", role="score"),
        )
        return worker.call(run, run.submission.asked, tuple(texts), amount=len(texts))


@dataclass(frozen=True)
class FileScorer(Scorer):
    """Calls `score(prompt, texts)` of a file: in processes of its own, or within the tick if it says `quick = True`."""

    path: str
    """The file."""

    def __post_init__(self) -> None:
        module_of(self.path)

    def begin(self, run: TreeRun, step: str = "") -> RunScorer:
        return _FunctionRunScorer(run, self._ask)

    def _ask(self, run: TreeRun, texts: Sequence[str]) -> Call:
        path = str(Path(self.path).resolve())
        if getattr(module_of(self.path), "quick", False):
            quick = run.service(
                ("scorer", path),
                lambda wake: FunctionWorker(partial(score_by_file, path), counts="scores", role="score"),
            )
            return quick.call(run, run.submission.asked, tuple(texts), amount=len(texts))
        slow = run.service(
            ("scorer", path), lambda wake: ProcessWorker(score_by_file, wake, counts="scores", role="score")
        )
        return slow.call(run, path, run.submission.asked, tuple(texts), amount=len(texts))


class _FunctionRunScorer(TextRunScorer):
    def __init__(self, run: TreeRun, ask: Ask) -> None:
        super().__init__(run)
        self._ask = ask

    def rate(self, texts: Sequence[str]) -> Generator[Request | list[Request], Any, Sequence[float]]:
        found: Sequence[float] = yield self._ask(self.run, texts)
        return found
