"""The report of the harness suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from outlay.bench.interleave import Outcome, spread
from outlay.bench.table import console, number, table, times
from outlay.compare.sweep import split_methods

OVERHEAD, TIMES = 1.03, 3.0  # the most of the one, the least of the other
OURS, FASTEST, TOGETHER = "outlay", "the fastest hf", "all together"


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    machine, settings = found["machine"], found["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    heading = (
        f"{machine['model']} on {machine['processor']}, {machine['cores']} cores, {settings['threads']} thread(s); "
        f"{machine['date']}, in {machine['seconds']:.0f} s\n{versions}"
    )
    return "\n\n".join([heading, _overhead(found["overhead"], settings), _evaluated(found["lm_eval"], settings)])


def _overhead(found: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    bare, compared, summing = found["bare"], found["compared"], found["summing_up"]
    ratio = median(one / other for one, other in zip(compared, bare, strict=True))
    whole = (sum(compared) + summing) / sum(bare)
    rows = [
        ["bare runs", number(sum(bare)), "1"],
        ["by outlay compare", number(sum(compared)), f"{ratio:.3f} (median over the prompts)"],
        ["with summing up and the report", number(sum(compared) + summing), f"{whole:.3f}"],
    ]
    count = len(split_methods(settings["methods"])) * len(bare)
    what = f"{count} runs of up to {settings['new']} tokens, each bare and by outlay compare, in turn"
    met = "met" if max(ratio, whole) <= OVERHEAD else "not met"
    return f"{what}\n{table(['', 'seconds', 'over bare'], rows)}\nwanted: {OVERHEAD} or less; {met}"


def _evaluated(rows: list[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    series = {(row["name"], row["task"]): row["per_second"] for row in rows}
    failed = {row["name"]: row["failure"] for row in rows if row["failure"]}

    def middle(values: Sequence[float | None]) -> float | None:
        found = spread(values)
        return None if found is None else found.median

    # The strongest opponent: the setting of hf that is the fastest at each task.
    for task in tasks:
        others = {name: series[name, task] for name in names if not name.startswith(OURS) and name not in failed}
        series[FASTEST, task] = max(others.values(), key=lambda values: middle(values) or 0.0, default=[])
    for name in (*names, FASTEST):
        series[name, TOGETHER] = _together([series[name, task] for task in tasks])
    columns = [*tasks, TOGETHER]
    cells = [
        [name, f"not measured: {failed[name]}"] if name in failed
        else [name, *(number(middle(series[name, column])) for column in columns)]
        for name in names
    ]  # fmt: skip
    ratios = [
        [f"{name} over {FASTEST}",
         *(times(Outcome.paired(series[name, column], series[FASTEST, column])) for column in columns)]
        for name in names if name.startswith(OURS) and name not in failed
    ]  # fmt: skip
    reached = {column: Outcome.paired(series[OURS, column], series[FASTEST, column]) for column in columns}
    known = {column: ratio.median for column, ratio in reached.items() if ratio is not None}
    missed = [column for column, ratio in known.items() if ratio < TIMES]
    met = "-" if not known else f"not met by {', '.join(missed)}" if missed else "met"
    besides = spread([seconds for row in rows for seconds in row["besides"]])
    extra = number(None if besides is None else besides.median)
    what = (
        f"lm_eval: documents a second, {settings['docs']} of each task, medians of {settings['rounds']} rounds\n"
        f"(while the model type answers; lm_eval itself takes {extra} s more an evaluation)"
    )
    return f"{what}\n{table(['', *columns], [*cells, *ratios])}\nwanted: {TIMES:g}x or more; {met}"


def _together(every: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Returns the documents a second of all tasks one after the other, of as many documents each, by round."""
    rounds = zip(*every, strict=False)
    known = [[value for value in values if value] for values in rounds]
    return [len(every) / sum(1 / value for value in values) if len(values) == len(every) else None for values in known]


TABLES = {"report": lambda found: console("outlay bench harness", report(found))}
