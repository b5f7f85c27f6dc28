"""The page of a trace: the tree, the passes over time, the cache and the text of each run in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from outlay.viewer.page import write_page
from outlay.viewer.trace_file import CanvasStory, Nodes, Pass, Story, TraceContent, nodes_of_canvas, read_trace

PROMPT, TEXT, COMMITTED, PRUNED, OPEN = range(5)  # final states of a node; the page names them
STYLES = ("base.css", "trace.css")
SCRIPTS = (
    "base.js", "trace_model.js", "trace_layout.js", "trace_tree.js", "trace_input.js", "trace_charts.js",
    "trace_text.js", "trace_canvas.js", "trace.js",
)  # fmt: skip
Spellings = dict[tuple[tuple[str, str], ...], int]  # a number for each spelling


def write_trace_page(trace: Path, page: Path) -> TraceContent:
    """Turns the trace file into one self-contained HTML file and returns what it read.

    Raises `UsageError` for what is no trace and `FailureError` where the page can't be written.
    """
    content = read_trace(trace)
    write_page(page, "trace.html", STYLES, SCRIPTS, page_data(content, trace.name))
    return content


def page_data(content: TraceContent, name: str) -> dict[str, Any]:
    """Returns what the page shows of a trace file, as JSON."""
    spellings: Spellings = {}
    runs = [_run(story, spellings) for story in content.stories]
    return {"name": name, "cut": content.cut, "spellings": [dict(spelling) for spelling in spellings], "runs": runs}


def _run(story: Story, spellings: Spellings) -> dict[str, Any]:
    if story.canvas is not None:
        story = replace(story, nodes=nodes_of_canvas(story.canvas))
    nodes, path = story.nodes, text_path(story)
    origins = list(dict.fromkeys(["", *nodes.origin]))
    return {
        "run": story.run,
        "method": story.method,
        "model": story.model,
        "reason": story.reason,
        "end": story.end,
        "prompt": story.prompt,
        "path": path,
        "origins": origins,
        "unknown": story.unknown,
        "nodes": {
            "parent": [-1 if parent is None else parent for parent in nodes.parent],
            "token": nodes.token,
            "position": nodes.position,
            "spelling": [_numbered(spelling, spellings) for spelling in nodes.spelling],
            "origin": [origins.index(origin) for origin in nodes.origin],
            "born": nodes.born,
            "settled": nodes.settled,
            "fate": fates(story, path),
        },
        "memory": None if story.memory is None else asdict(story.memory),
        "canvas": None if story.canvas is None else _canvas(story.canvas, spellings),
        "marks": {name: _mark(values) for name, values in story.marks.items()},
        "passes": {column.name: [getattr(each, column.name) for each in story.passes] for column in fields(Pass)},
    }


def _canvas(canvas: CanvasStory, spellings: Spellings) -> dict[str, Any]:
    rounds = [
        {
            "number": each.number,
            "time": each.time,
            "position": [cell.position for cell in each.cells],
            "spelling": [_numbered(cell.spelling, spellings) for cell in each.cells],
            "confidence": [cell.confidence if math.isfinite(cell.confidence) else 0.0 for cell in each.cells],
            "filled": [int(cell.filled) for cell in each.cells],
        }
        for each in canvas.rounds
    ]
    return {"begin": canvas.begin, "length": canvas.length, "rounds": rounds}


def _numbered(spelling: Mapping[str, str], spellings: Spellings) -> int:
    return spellings.setdefault(tuple(spelling.items()), len(spellings))


def _mark(values: Mapping[int, float | str]) -> dict[str, Any]:
    return {"nodes": list(values), "values": [value if _is_json(value) else str(value) for value in values.values()]}


def _is_json(value: float | str) -> bool:
    """Tells whether JSON has this value; it has no infinity."""
    return isinstance(value, str) or math.isfinite(value)


def text_path(story: Story) -> list[int]:
    """Returns the nodes of the run's text in order: the path below the prompt that spells its tokens.

    A run that has not ended has no text yet; the path to what it committed last stands for it.
    """
    if story.canvas is not None:
        return _without_gap(story, story.canvas.begin)
    last = _last_committed(story.nodes) if story.reason is None else _spelled(story)
    return _path(story.nodes, last, story.prompt)


def _without_gap(story: Story, begin: int) -> list[int]:
    """Returns the nodes of a canvas's text: as many as the run returned, or, before its end, up to the first gap."""
    behind = range(begin, len(story.nodes))
    path = [node for node in behind if story.nodes.position[node] == node]
    return path if story.reason is None else path[: len(story.tokens)]


def _spelled(story: Story) -> int:
    """Returns the last node of the text. Of siblings with the same token, one that was committed comes first."""
    nodes = story.nodes
    below: dict[tuple[int, int], list[int]] = {}
    for node, (parent, token) in enumerate(zip(nodes.parent, nodes.token, strict=True)):
        if parent is not None:
            below.setdefault((parent, token), []).append(node)
    level = [story.prompt - 1]
    for token in story.tokens:
        deeper = [child for node in level for child in below.get((node, token), [])]
        if not deeper:
            break
        level = deeper
    return max(level, key=lambda node: (nodes.committed[node], -node))


def _last_committed(nodes: Nodes) -> int:
    """Returns the node that was committed last, -1 if none was."""
    committed = [(settled or 0.0, node) for node, settled in enumerate(nodes.settled) if nodes.committed[node]]
    return max(committed, default=(0.0, -1))[1]


def _path(nodes: Nodes, last: int, start: int) -> list[int]:
    """Returns the nodes from number `start` down to `last`."""
    path = []
    while last >= start:
        path.append(last)
        above = nodes.parent[last]
        last = -1 if above is None else above
    return path[::-1]


def fates(story: Story, path: Sequence[int]) -> list[int]:
    """Returns the final state of each node: in the prompt or the text, committed elsewhere, pruned, or open."""
    text = set(path)
    return [
        _fate(node < story.prompt, node in text, committed, settled is not None)
        for node, (committed, settled) in enumerate(zip(story.nodes.committed, story.nodes.settled, strict=True))
    ]


def _fate(in_prompt: bool, in_text: bool, committed: bool, settled: bool) -> int:
    if in_prompt:
        return PROMPT
    if in_text:
        return TEXT
    if committed:
        return COMMITTED
    return PRUNED if settled else OPEN
