"""Lists of methods and budgets as they are typed, with sweeps: `a|b` in place of a value gives one of each.

Commas separate both methods and their options. A part that starts with `name=` goes on with the options of the method
before it; every other part begins a method: `greedy,beam:width=2|4,length_penalty=0.8,sample` is greedy, two beams,
and sample.
"""

from __future__ import annotations

import itertools
import re

from outlay.errors import UsageError

_OPTION = re.compile(r"\s*\w+\s*=")


def split_methods(text: str) -> list[str]:
    """Returns each method with its options. Raises `UsageError` for an option without a method before it."""
    methods: list[str] = []
    for part in text.split(","):
        if not part.strip():
            continue
        if not _OPTION.match(part):
            methods.append(part.strip())
        elif not methods:
            raise UsageError(f"{part.strip()!r} is an option without a method before it; write NAME:{part.strip()}")
        else:
            methods[-1] += ("," if ":" in methods[-1] else ":") + part.strip()
    if not methods:
        raise UsageError("name at least one method, as in --methods greedy,beam:width=4; `outlay methods` lists them")
    return methods


def swept(text: str) -> list[str]:
    """Returns the text once for each combination of its alternatives, the last one changing first."""
    head, colon, options = text.partition(":") if not _OPTION.match(text) else ("", "", text)
    choices = [_alternatives(part) for part in options.split(",")]
    return [head + colon + ",".join(filter(None, chosen)) for chosen in itertools.product(*choices)]


def _alternatives(part: str) -> list[str]:
    name, equals, values = part.partition("=")
    if "|" not in values:
        return [part]
    return [f"{name}{equals}{value}" for value in values.split("|")]


def swept_budgets(text: str) -> list[str]:
    """Returns the budgets of `"target_passes=32|64|none,seconds=2"`; `none` leaves an entry without a cap."""
    combinations = [
        ",".join(part for part in budget.split(",") if not part.endswith("=none")) for budget in swept(text)
    ]
    return list(dict.fromkeys(combinations))
