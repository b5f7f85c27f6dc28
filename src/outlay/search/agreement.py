"""Which answers are the same: those with one canonical form, and those that `math-verify` finds equal."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from importlib.util import find_spec
from typing import Any

from outlay.engine.functions import ProcessWorker
from outlay.engine.request import Request
from outlay.engine.tree_run import TreeRun
from outlay.search.answers import is_number, merged


def agreed(run: TreeRun, answers: Sequence[str | None]) -> Generator[Request | list[Request], Any, list[str | None]]:
    """Gives equal answers one form: `answers = yield from agreed(run, answers)`.

    Args:
        run: The run, which asks a process where answers are no numbers.
        answers: Canonical answers; None where a text has none.
    """
    distinct = [answer for answer in dict.fromkeys(answers) if answer is not None]
    if len(distinct) < 2 or all(map(is_number, distinct)) or find_spec("math_verify") is None:
        return list(answers)
    worker = run.service("answers", lambda wake: ProcessWorker(merged, wake, processes=1))
    same = dict(zip(distinct, (yield worker.call(run, distinct)), strict=True))
    return [None if answer is None else same[answer] for answer in answers]
