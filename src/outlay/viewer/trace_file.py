"""Reads the trace that `outlay run --trace` writes into columns, for each of its runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outlay.errors import UsageError

EVENTS = ("start", "memory", "grow", "keep", "free", "mark", "canvas", "fill", "pass", "finish")
OWN_FIELDS = ("run", "event", "time", "node")


@dataclass
class Nodes:
    """The nodes of a tree in the order in which they grew, a column for each property."""

    parent: list[int | None] = field(default_factory=list)
    token: list[int] = field(default_factory=list)
    spelling: list[dict[str, str]] = field(default_factory=list)
    """How a token is written: {"text": ...}, {"bytes": ...} or {"name": ...}."""
    position: list[int] = field(default_factory=list)
    origin: list[str] = field(default_factory=list)
    """What proposed a node, "" for the model itself."""
    born: list[float] = field(default_factory=list)
    """When a node grew, in seconds."""
    settled: list[float | None] = field(default_factory=list)
    """When a node was committed or freed, in seconds."""
    committed: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True)
class MemoryStory:
    """What all nodes of a run read beside their path: what an encoder made of the input."""

    rows: int
    kind: str
    """Of the input: "tokens" or "sound"."""
    bytes: int


@dataclass(frozen=True)
class Pass:
    """A forward pass that a run took part in."""

    model: str
    """"target", "draft", "score" or "side"; "encoder" and "draft encoder" read inputs."""
    number: int
    """Among the model's passes; runs with the same number shared the pass."""
    time: float
    """When it ended, in seconds."""
    seconds: float
    width: int
    """Rows of all runs."""
    runs: int
    """Runs that took part."""
    rows: int
    """Rows of this run; of an encoder, those of its input."""
    cache_bytes: int
    nodes: list[int]
    """Nodes of this run that it computed."""


@dataclass(frozen=True)
class Cell:
    """What a round proposed for a masked position of a canvas."""

    position: int
    token: int
    spelling: dict[str, str]
    confidence: float
    filled: bool
    """Whether the round filled it."""


@dataclass(frozen=True)
class Round:
    """A round of a canvas."""

    number: int
    """From 1 on."""
    time: float
    """When it ended, in seconds."""
    cells: list[Cell]


@dataclass(frozen=True)
class CanvasStory:
    """The rounds in which a canvas was filled."""

    begin: int
    """Its first position, which is also the length of the prompt."""
    length: int
    """Its masks at the beginning."""
    prompt: list[tuple[int, dict[str, str]]]
    """The tokens of the prompt, each with its spelling."""
    rounds: list[Round] = field(default_factory=list)


@dataclass
class Story:
    """The events of one run, in columns."""

    run: int
    method: str = ""
    model: str = ""
    prompt: int = 0
    nodes: Nodes = field(default_factory=Nodes)
    passes: list[Pass] = field(default_factory=list)
    marks: dict[str, dict[int, float | str]] = field(default_factory=dict)
    memory: MemoryStory | None = None
    """None where no encoder reads the input."""
    canvas: CanvasStory | None = None
    """None for a run on a tree."""
    tokens: list[int] = field(default_factory=list)
    reason: str | None = None
    """Why the run ended, None where the trace ends before it."""
    end: float = 0.0
    unknown: dict[str, int] = field(default_factory=dict)
    """How many events there were of each kind that is not known."""
    _index: dict[int, int] = field(default_factory=dict)

    def add(self, event: dict[str, Any]) -> None:
        """Adds an event. Raises `KeyError`, `TypeError` or `ValueError` for one without the fields of its kind."""
        kind, time = event["event"], float(event["time"])
        self.end = max(self.end, time)
        if kind in EVENTS:
            getattr(self, f"_{kind}")(event, time)
        else:
            self.unknown[kind] = self.unknown.get(kind, 0) + 1

    def _start(self, event: dict[str, Any], time: float) -> None:
        self.method, self.model, self.prompt = str(event["method"]), str(event["model"]), len(event["prompt"])

    def _memory(self, event: dict[str, Any], time: float) -> None:
        self.memory = MemoryStory(int(event["rows"]), str(event["kind"]), int(event["bytes"]))

    def _grow(self, event: dict[str, Any], time: float) -> None:
        nodes = self.nodes
        for row in event["nodes"]:
            self._index[row["node"]] = len(nodes)
            nodes.parent.append(None if row["parent"] is None else self._index[row["parent"]])
            nodes.token.append(int(row["token"]))
            nodes.spelling.append(_spelling(row))
            nodes.position.append(int(row["position"]))
            nodes.origin.append(str(row.get("origin", "")))
            nodes.born.append(time)
            nodes.settled.append(None)
            nodes.committed.append(False)

    def _keep(self, event: dict[str, Any], time: float) -> None:
        for number in event["nodes"]:
            self.nodes.settled[self._index[number]] = time
            self.nodes.committed[self._index[number]] = True

    def _free(self, event: dict[str, Any], time: float) -> None:
        for number in event["nodes"]:
            if number in self._index:  # 0 stands for a node that was never grown in this tree
                self.nodes.settled[self._index[number]] = time

    def _mark(self, event: dict[str, Any], time: float) -> None:
        node = self._index.get(event["node"])
        for name, value in event.items():
            if name not in OWN_FIELDS and node is not None:
                self.marks.setdefault(name, {})[node] = value

    def _canvas(self, event: dict[str, Any], time: float) -> None:
        prompt = [(int(cell["token"]), _spelling(cell)) for cell in event["prompt"]]
        self.canvas = CanvasStory(int(event["begin"]), int(event["length"]), prompt)

    def _fill(self, event: dict[str, Any], time: float) -> None:
        if self.canvas is None:
            raise ValueError("there was no canvas before it")
        cells = [
            Cell(int(row["position"]), int(row["token"]), _spelling(row), float(row["confidence"]), bool(row["filled"]))
            for row in event["cells"]
        ]
        self.canvas.rounds.append(Round(int(event["round"]), time, cells))

    def _pass(self, event: dict[str, Any], time: float) -> None:
        mine = event["nodes"]
        self.passes.append(
            Pass(
                model=str(event["model"]),
                number=int(event["number"]),
                time=time,
                seconds=float(event["seconds"]),
                width=int(event["width"]),
                runs=int(event["runs"]),
                rows=len(mine) + len(event.get("positions", ())) + int(event.get("inputs", 0)),
                cache_bytes=int(event["cache_bytes"]),
                # A draft model's nodes are in a tree of its own, which is not traced.
                nodes=[self._index[number] for number in mine if number in self._index],
            )
        )

    def _finish(self, event: dict[str, Any], time: float) -> None:
        self.reason, self.tokens = str(event["reason"]), [int(token) for token in event["tokens"]]


@dataclass(frozen=True)
class TraceContent:
    """What a trace file holds. `cut` is the number of its last line if that one is broken off."""

    stories: list[Story]
    cut: int | None


def read_trace(path: Path) -> TraceContent:
    """Reads the trace at `path`, without a last line that is broken off. Raises `UsageError` for what is no trace."""
    stories: dict[int, Story] = {}
    cut = None
    lines = _lines(path)
    for number, line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            if number == lines[-1][0] and stories:
                cut = number
                break
            raise UsageError(f"line {number} of {path} is not JSON; {_WANTED}") from None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise UsageError(f"line {number} of {path} is not an event of a run; {_WANTED}")
        try:
            run = int(event.get("run", 0))
            stories.setdefault(run, Story(run)).add(event)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else f"is not as traces have it ({error})"
            raise UsageError(f"line {number} of {path}: the {event['event']!r} event {what}") from None
    if not stories:
        raise UsageError(f"{path} is empty; {_WANTED}")
    return TraceContent([stories[run] for run in sorted(stories)], cut)


_WANTED = "a trace is what `outlay run PROMPT --trace FILE` writes"


def _lines(path: Path) -> list[tuple[int, str]]:
    """Returns the lines that are not blank, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _spelling(row: dict[str, Any]) -> dict[str, str]:
    for kind in ("text", "bytes", "name"):
        if kind in row:
            return {kind: str(row[kind])}
    raise KeyError("text")


def nodes_of_canvas(canvas: CanvasStory) -> Nodes:
    """Returns a canvas as a chain of nodes in the order of positions: the prompt, then all that was filled.

    A node is born when its position was filled, and its origin is the round that filled it.
    """
    nodes = Nodes()
    filled = {cell.position: (cell, each) for each in canvas.rounds for cell in each.cells if cell.filled}
    prompt = [(place, token, spelling, 0.0, "") for place, (token, spelling) in enumerate(canvas.prompt)]
    text = [
        (place, cell.token, cell.spelling, each.time, f"round {each.number}")
        for place, (cell, each) in sorted(filled.items())
    ]
    for number, (position, token, spelling, time, origin) in enumerate([*prompt, *text]):
        nodes.parent.append(number - 1 if number else None)
        nodes.token.append(token)
        nodes.spelling.append(spelling)
        nodes.position.append(position)
        nodes.origin.append(origin)
        nodes.born.append(time)
        nodes.settled.append(time)
        nodes.committed.append(True)
    return nodes
