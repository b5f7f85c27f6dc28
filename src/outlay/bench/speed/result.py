"""What the speed suite writes as JSON, and reads again to make its tables."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import asdict, fields
from typing import Any

from outlay.bench.interleave import Measurements
from outlay.bench.speed.settings import SpeedSettings
from outlay.bench.speed.tasks import Decode, Likelihood, PassCost, PeakProducts, Prompt, ReadMemory, SpeedTask

KINDS = {kind.__name__: kind for kind in (Decode, Prompt, PassCost, ReadMemory, PeakProducts, Likelihood)}


def as_dict(settings: SpeedSettings, found: Measurements) -> dict[str, Any]:
    """Returns everything that was measured, as JSON can hold it."""
    values = [
        {
            "contender": name,
            "task": type(task).__name__,
            **_fields(task),
            "seconds": found.seconds.get((name, task)),
            "rounds": rounds,
        }
        for (name, task), rounds in found.values.items()
    ]
    return {
        "settings": asdict(settings),
        "contenders": found.facts,
        "failures": found.failures,
        "idle_cores": found.idle,
        "values": values,
    }


def read(result: Mapping[str, Any]) -> tuple[SpeedSettings, Measurements]:
    """Returns the settings and the measurements of `as_dict`, which may have been JSON meanwhile."""
    options = dict(result["settings"])
    options["new"] = {int(batch): new for batch, new in options["new"].items()}
    for name in ("formats", "peers", "threads", "text"):
        options[name] = tuple(options.get(name, ()))

    found = Measurements(facts=result["contenders"], failures=result["failures"], idle=result["idle_cores"])
    for row in result["values"]:
        kind = KINDS[row["task"]]
        options_of_task: dict[str, Any] = {
            field.name: tuple(value) if isinstance(value := row[field.name], list) else value for field in fields(kind)
        }
        task = kind(**options_of_task)
        found.values[row["contender"], task] = row["rounds"]
        found.seconds[row["contender"], task] = row["seconds"]
    return SpeedSettings(**options), found


def _fields(task: Hashable) -> dict[str, Any]:
    assert isinstance(task, SpeedTask)
    return asdict(task)
