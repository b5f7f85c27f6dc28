"""Greedy decoding: the most probable token, each time.

One pass of the target model a token. It is exact by definition, and what every exact method writes at temperature 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outlay.engine.method import About, Method, Work
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError


@dataclass(frozen=True)
class Greedy(Method):
    """Takes the most probable token, the lowest id among equals."""

    about: ClassVar[About] = About(
        name="greedy",
        summary="the most probable token each time",
        paper="",
        family="baseline",
        spends="one target pass a token",
        takes=("constraint", "cache"),
        saves="nothing: it is what the others are measured against",
    )

    def check(self, submission: Submission) -> None:
        if not submission.greedy:
            raise UsageError(
                f"greedy decodes at temperature 0, not {submission.options.sampling.temperature}; "
                "method 'sample' draws tokens"
            )

    def decode(self, run: TreeRun) -> Work:
        node = run.tip
        while True:
            node = run.commit((yield from run.next_token(node)))
