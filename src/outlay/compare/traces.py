"""Traces of each contender on each prompt with the first seed, from runs that are not measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outlay.compare import folder
from outlay.compare.contenders import Contender
from outlay.compare.runner import Runner
from outlay.engine.handle import Result
from outlay.progress import ShowProgress
from outlay.viewer.trace_page import write_trace_page


def trace_name(contender: int, prompt: int, seed: int) -> str:
    """Returns the name of a run's trace in the folder of traces."""
    return f"{contender:02d}-{prompt:04d}-{seed}.jsonl"


def write_traces(
    out: Path,
    runner: Runner,
    contenders: Sequence[Contender],
    prompts: int,
    seed: int,
    progress: ShowProgress,
) -> None:
    """Writes the traces that are missing, and their pages."""
    traces = out / folder.TRACES
    traces.mkdir(exist_ok=True)
    total = len(contenders) * prompts
    for index, contender in enumerate(contenders):
        for prompt in range(prompts):
            progress("tracing", index * prompts + prompt, total)
            path = traces / trace_name(index, prompt, seed)
            if path.exists():
                continue
            events: list[dict[str, Any]] = []
            [outcome] = runner.answer(contender, [prompt], seed, trace=events.append)
            if isinstance(outcome, Result):
                folder.write(path, "".join(json.dumps({"run": 0, **event}) + "\n" for event in events))
                write_trace_page(path, path.with_suffix(".html"))
