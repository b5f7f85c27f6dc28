"""The report of the harness suite: the overhead of a comparison, and documents a second of lm_eval's model types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlay import machine
from outlay.compare.sweep import split_methods
from outlay.spread import middle, paired_ratio
from outlay.tables import console, number, table, times

OURS, FASTEST, TOGETHER = "outlay", "the fastest hf", "all together"
Series = list[float | None]


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    settings = found["settings"]
    parts = [_overhead(found["overhead"], settings), _evaluated(found["lm_eval"], settings)]
    return "\n\n".join([machine.heading(found["machine"], settings["threads"]), *parts])


def _overhead(found: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    bare, compared, summing = found["bare"], found["compared"], found["summing_up"]
    ratio = paired_ratio(compared, bare)
    whole = (sum(compared) + summing) / sum(bare)
    rows = [
        ["bare runs", number(sum(bare)), "1"],
        [
            "by outlay compare",
            number(sum(compared)),
            "-" if ratio is None else f"{ratio.median:.3f} (median over the prompts)",
        ],
        ["with summing up and the report", number(sum(compared) + summing), f"{whole:.3f}"],
    ]
    count = len(split_methods(settings["methods"])) * len(bare)
    what = f"{count} runs of up to {settings['new']} tokens, each bare and by outlay compare, in turn"
    return f"{what}\n{table(['', 'seconds', 'over bare'], rows)}"


def _evaluated(rows: list[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    failed = {row["name"]: row["failure"] for row in rows if row["failure"]}
    names = list(dict.fromkeys(row["name"] for row in rows))
    series = _series(rows, tasks, [name for name in names if name not in failed])

    columns = [*tasks, TOGETHER]
    cells = [
        [name, f"not measured: {failed[name]}"] if name in failed
        else [name, *(number(middle(series[name, column])) for column in columns)]
        for name in names
    ]  # fmt: skip
    ratios = [
        [f"{name} over {FASTEST}",
         *(times(paired_ratio(series[name, column], series[FASTEST, column])) for column in columns)]
        for name in names if name.startswith(OURS) and name not in failed
    ]  # fmt: skip
    besides = number(middle([seconds for row in rows for seconds in row["besides"]]))
    what = (
        f"lm_eval: documents a second, {settings['docs']} of each task, medians of {settings['rounds']} rounds\n"
        f"(while the model type answers; lm_eval itself takes {besides} s more an evaluation)"
    )
    return f"{what}\n{table(['', *columns], [*cells, *ratios])}"


def _series(
    rows: Sequence[Mapping[str, Any]], tasks: Sequence[str], names: Sequence[str]
) -> dict[tuple[str, str], Series]:
    """Returns the documents a second by model type and task, of each round; also of `FASTEST` and of `TOGETHER`."""
    series: dict[tuple[str, str], Series] = {(row["name"], row["task"]): row["per_second"] for row in rows}
    for task in tasks:  # the strongest opponent: the setting of hf that is the fastest at each task
        others = [series[name, task] for name in names if not name.startswith(OURS)]
        series[FASTEST, task] = max(others, key=lambda values: middle(values) or 0.0, default=[])
    for name in (*names, FASTEST):
        series[name, TOGETHER] = _together([series[name, task] for task in tasks])
    return series


def _together(every: Sequence[Series]) -> Series:
    """Returns the documents a second of all tasks one after the other, of as many documents each, by round."""
    rounds = zip(*every, strict=False)
    known = [[value for value in values if value] for values in rounds]
    return [len(every) / sum(1 / value for value in values) if len(values) == len(every) else None for values in known]


TABLES = {"report": lambda found: console("outlay bench harness", report(found))}
