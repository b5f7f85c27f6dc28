"""Ancestral sampling: each token is drawn from the model's distribution, after temperature and truncation.

One pass of the target model a token. Exact: the text is distributed as the model with these sampling options;
truncation by top-k (Fan et al. 2018), top-p (Holtzman et al. 2020) and min-p (Nguyen et al. 2024) has the meaning that
`transformers` gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outlay.engine.method import About, Method, Work
from outlay.engine.tree_run import TreeRun


@dataclass(frozen=True)
class Sample(Method):
    """Draws each token. At temperature 0 it writes what greedy writes."""

    about: ClassVar[About] = About(
        name="sample",
        summary="each token drawn, after temperature and truncation",
        paper="",
        family="baseline",
        spends="one target pass a token",
        takes=("constraint", "cache"),
        saves="nothing: it is what the others are measured against",
    )

    def decode(self, run: TreeRun) -> Work:
        node = run.tip
        while True:
            node = run.commit((yield from run.next_token(node)))
