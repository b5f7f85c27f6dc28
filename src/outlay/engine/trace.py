"""The events of one run as JSON objects: nodes grown, committed and freed, rounds of a canvas, passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from outlay.engine.request import PassReport
from outlay.models.tokenizer import Tokenizer
from outlay.tree.canvas import Row
from outlay.tree.token_tree import Node
from outlay.tree.visual import VisualToken


class Proposed(NamedTuple):
    """What a round proposes for a masked position of a canvas."""

    position: int
    token: int
    confidence: float
    filled: bool


class Trace:
    """Writes the events of one run.

    Each event is a dict with `event` and `time` (seconds from the start). Nodes are numbered as they appear. A new node
    is written with the text of its token, so that a trace can be read without the model. `error` is the first error of
    the caller's `write`, after which nothing is written.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None], tokenizer: Tokenizer) -> None:
        self._write, self._tokenizer = write, tokenizer
        self._numbers: dict[Node, int] = {}
        self._spellings: dict[int, dict[str, str]] = {}
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
             **self._named(node), "position": node.position,
             **({"origin": node.origin} if node.origin else {})}
            for node in nodes
        ]  # fmt: skip
        self._send("grow", nodes=rows)

    def committed(self, nodes: Sequence[Node]) -> None:
        """Nodes were committed."""
        self._send("keep", nodes=[self._number(node) for node in nodes])

    def freed(self, nodes: Sequence[Node]) -> None:
        """Tentative nodes were freed."""
        self._send("free", nodes=[self._numbers.pop(node, 0) for node in nodes])

    def marked(self, node: Node, marks: Mapping[str, float | str]) -> None:
        """A method describes a node: its score, its visits, the round that it belongs to."""
        self._send("mark", node=self._number(node), **marks)

    def canvas(self, begin: int, length: int, prompt: Sequence[int]) -> None:
        """A canvas of `length` masks was put behind a prompt that ends before position `begin`."""
        cells = [{"position": place, "token": token, **self._spelling(token)} for place, token in enumerate(prompt)]
        self._send("canvas", begin=begin, length=length, prompt=cells)

    def filled(self, number: int, cells: Sequence[Proposed]) -> None:
        """Round `number` of a canvas, from 1 on: what was proposed for its masks, and which of them were filled."""
        rows = [
            {"position": cell.position, "token": cell.token, **self._spelling(cell.token),
             "confidence": round(cell.confidence, 6), "filled": cell.filled}
            for cell in cells
        ]  # fmt: skip
        self._send("fill", round=number, cells=rows)

    def memory(self, rows: int, kind: Literal["tokens", "sound"], nbytes: int) -> None:
        """All nodes read a memory of so many rows beside their path, which an encoder makes of tokens or of sound."""
        self._send("memory", rows=rows, kind=kind, bytes=nbytes)

    def read(self, model: str, report: PassReport, rows: int) -> None:
        """A pass of `model`, an encoder or a vision tower, read so many rows of this run's inputs."""
        self._send(
            "pass", model=model, number=report.number, nodes=[], inputs=rows, width=report.rows, runs=report.runs,
            seconds=report.seconds, cache_bytes=report.cache_bytes,
        )  # fmt: skip

    def passed(self, model: str, report: PassReport, rows: Sequence[Row]) -> None:
        """A pass of a model, the "target" or the "draft", computed these nodes and cells of this run."""
        mine = [self._number(row) for row in rows if isinstance(row, Node)]
        cells = [row.position for row in rows if not isinstance(row, Node)]
        cost = {"seconds": report.seconds, "cache_bytes": report.cache_bytes}
        more = {"positions": cells} if cells else {}
        self._send(
            "pass", model=model, number=report.number, nodes=mine, width=report.rows, runs=report.runs, **cost, **more
        )

    def finished(self, reason: str, tokens: Sequence[int]) -> None:
        """The run ended."""
        self._send("finish", reason=reason, tokens=list(tokens))

    def _named(self, node: Node) -> dict[str, str]:
        return {"name": "image"} if isinstance(node.input_embed, VisualToken) else self._spelling(node.token)

    def _spelling(self, token: int) -> dict[str, str]:
        if token not in self._spellings:
            self._spellings[token] = _spell(self._tokenizer, token)
        return self._spellings[token]

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


def _spell(tokenizer: Tokenizer, token: int) -> dict[str, str]:
    """Returns a token's text, its bytes in hexadecimal if they are no whole characters, or a special token's name."""
    if token < 0:
        return {"name": "input embedding"}
    data = tokenizer.bytes_of(token)
    if not data:
        return {"name": tokenizer.name_of(token)}
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"bytes": data.hex()}
