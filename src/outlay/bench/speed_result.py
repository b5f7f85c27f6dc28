"""What the speed suite writes as JSON, and reads again to make its tables."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import asdict, fields
from typing import Any

from outlay.bench.interleave import Outcome
from outlay.bench.speed_settings import Settings
from outlay.bench.tasks import Decode, PassCost, Prompt, ReadMemory, Task

TASKS = {kind.__name__: kind for kind in (Decode, Prompt, PassCost, ReadMemory)}


def as_dict(settings: Settings, outcome: Outcome, machine: dict[str, Any]) -> dict[str, Any]:
    """Returns everything that was measured."""
    values = [
        {
            "contender": name,
            "task": type(task).__name__,
            **_fields(task),
            "seconds": outcome.seconds.get((name, task)),
            "rounds": rounds,
        }
        for (name, task), rounds in outcome.values.items()
    ]
    return {
        "machine": machine,
        "settings": asdict(settings),
        "contenders": outcome.facts,
        "failures": outcome.failures,
        "idle_cores": outcome.idle,
        "values": values,
    }


def read(found: Mapping[str, Any]) -> tuple[Settings, Outcome]:
    """Returns the settings and the outcome of `as_dict`, which may have been JSON meanwhile."""
    options = dict(found["settings"])
    options["new"] = {int(batch): new for batch, new in options["new"].items()}
    for name in ("formats", "peers", "threads"):
        options[name] = tuple(options[name])
    outcome = Outcome(facts=found["contenders"], failures=found["failures"], idle=found["idle_cores"])
    for row in found["values"]:
        kind = TASKS[row["task"]]
        task = kind(**{field.name: row[field.name] for field in fields(kind)})
        outcome.values[row["contender"], task] = row["rounds"]
        outcome.seconds[row["contender"], task] = row["seconds"]
    return Settings(**options), outcome


def _fields(task: Hashable) -> dict[str, Any]:
    assert isinstance(task, Task)
    return asdict(task)
