"""The events of one run as JSON objects: nodes grown, kept and freed, passes with their widths and times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from outlay.tree.token_tree import Node


class Trace:
    """Numbers a run's nodes and sends each event to `write` as a dict with `event` and `time` (seconds from the
    start).
    """

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self._write = write
        self._numbers: dict[Node, int] = {}
        self._last = 0
        self._started = time.perf_counter()
        self.error: Exception | None = None

    def begun(self, **about: object) -> None:
        """The run starts; `about` says what it is."""
        self._send("start", **about)

    def grew(self, nodes: Sequence[Node]) -> None:
        """Nodes were added to the tree."""
        rows = [
            {"node": self._number(node), "parent": node.parent and self._number(node.parent), "token": node.token,
             "position": node.position}
            for node in nodes
        ]  # fmt: skip
        self._send("grow", nodes=rows)

    def kept(self, nodes: Sequence[Node]) -> None:
        """Nodes were decided."""
        self._send("keep", nodes=[self._number(node) for node in nodes])

    def freed(self, nodes: Sequence[Node]) -> None:
        """Nodes were given up."""
        self._send("free", nodes=[self._numbers.pop(node, 0) for node in nodes])

    def passed(
        self, model: str, nodes: Sequence[Node], width: int, runs: int, seconds: float, cache_bytes: int
    ) -> None:
        """A pass over `width` nodes, of `runs` runs, computed these nodes of this run."""
        mine = [self._number(node) for node in nodes]
        self._send("pass", model=model, nodes=mine, width=width, runs=runs, seconds=seconds, cache_bytes=cache_bytes)

    def finished(self, reason: str, tokens: Sequence[int]) -> None:
        """The run ended."""
        self._send("finish", reason=reason, tokens=list(tokens))

    def _number(self, node: Node) -> int:
        number = self._numbers.get(node)
        if number is None:
            self._last += 1
            number = self._numbers[node] = self._last
        return number

    def _send(self, event: str, **fields: object) -> None:
        if self.error is not None:
            return
        try:
            self._write({"event": event, "time": round(time.perf_counter() - self._started, 6), **fields})
        except Exception as error:  # the caller's own, which its run reports at the end
            self.error = error
