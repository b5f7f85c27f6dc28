"""The scorer `tests:FILE`: the share of a user's tests that a text passes as a Python program."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.engine.functions import Call, ThreadWorker
from outlay.engine.request import Request
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.rewards.programs.execute import Limits, run_tests
from outlay.rewards.programs.tests import Test, code_in, of_assertions, read_tests
from outlay.rewards.scorer import RunScorer, Scorer, TextRunScorer, count_scores


@dataclass(frozen=True)
class PythonTests(Scorer):
    """Runs each text as a Python program on tests, outside of this process, with limits.

    A text is a program as it stands, or by its first fenced block of code. What a model writes is executed with the
    rights of whoever runs this: the limits hold back accidents, not attacks.
    """

    tests: tuple[Test | str, ...]
    """The public tests: assertions as text, or `Test`s."""
    seconds: int = 4
    """Seconds of CPU time for each test."""
    memory: int = 512
    """Megabytes of address space for each test."""
    prompt: bool = False
    """Whether the prompt begins the program, as for a model that goes on with code."""

    def __post_init__(self) -> None:
        if not hasattr(os, "fork"):
            raise UsageError("the scorer tests runs programs in forks, which this system has not; take python:FILE")
        if not self.tests:
            raise UsageError("the scorer tests has no tests; give it one at least")
        for option in ("seconds", "memory"):
            if getattr(self, option) < 1:
                raise UsageError(f"the scorer tests needs {option} of 1 or more, not {getattr(self, option)}")
        try:
            of_assertions([test for test in self.tests if isinstance(test, str)])
        except SyntaxError as error:
            raise UsageError(f"the test {str(error.text).strip()!r} is not Python") from error

    @classmethod
    def of_file(cls, path: str, options: dict[str, str]) -> PythonTests:
        """Makes it of a file's name and options as they are typed. Raises `UsageError` for what can't be used."""
        for option in ("seconds", "memory"):
            if not options.get(option, "1").isdecimal():
                raise UsageError(f"{option} of the scorer tests is a whole number, not {options[option]!r}")
        if options.get("prompt", "true") not in ("true", "false"):
            raise UsageError(f"prompt of the scorer tests is true or false, not {options['prompt']!r}")
        given: dict[str, Any] = {name: int(options[name]) for name in ("seconds", "memory") if name in options}
        return cls(read_tests(Path(path)), prompt=options.get("prompt") == "true", **given)

    def begin(self, run: TreeRun, step: str = "") -> RunScorer:
        return _TestsRunScorer(run, self)


class _TestsRunScorer(TextRunScorer):
    """Tests the texts of one run. Texts that are the same program are tested once."""

    def __init__(self, run: TreeRun, scorer: PythonTests) -> None:
        super().__init__(run)
        self._tests = tuple(Test(code=test) if isinstance(test, str) else test for test in scorer.tests)
        self._limits = Limits(scorer.seconds, scorer.memory)
        self._before = run.submission.asked if scorer.prompt else ""
        self._rates: dict[str, float] = {}

    def rate(self, texts: Sequence[str]) -> Generator[Request | list[Request], Any, Sequence[float]]:
        programs = [program_of(text, self._before) for text in texts]
        fresh = [program for program in dict.fromkeys(programs) if program not in self._rates]
        yield count_scores(self.run, len(texts))
        if fresh:
            found: list[list[bool]] = yield [self._call(program) for program in fresh]
            self._rates.update(
                (program, sum(passed) / len(passed)) for program, passed in zip(fresh, found, strict=True)
            )
        return [self._rates[program] for program in programs]

    def _call(self, program: str) -> Call:
        worker = self.run.service(
            "programs", lambda wake: ThreadWorker(run_tests, wake, counts="executions", role="score")
        )
        return worker.call(self.run, program, self._tests, self._limits)


def program_of(text: str, before: str = "") -> str:
    """Returns the program in a text, without the space behind it: its first fenced block, or the text itself.

    Args:
        text: What the model wrote.
        before: What the program begins with, where the model went on with code.
    """
    return (before + text if before else code_in(text)).rstrip()
