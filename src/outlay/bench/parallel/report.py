"""The report of the parallel suite: the closed forms, or scores over tokens a round with what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from outlay import machine
from outlay.bench.parallel import statistics
from outlay.bench.parallel.grid import TOP_K
from outlay.tables import console, number, table


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    parts = _analytic(found) if "analytic" in found else _model(found)
    return "\n\n".join([machine.heading(found["machine"]), *parts])


def _analytic(found: Mapping[str, Any]) -> list[str]:
    rows = found["analytic"]
    header = ["task", "items", "a round fills", "temperature", "rounds", "closed form", "found", "z"]
    lines = [
        [row["task"], str(row["n"]), row["rule"], str(row["temperature"]), str(row["rounds"]), f"{row['expected']:.2%}",
         f"{row['found']:.2%}", "infinite" if row["z"] is None else f"{row['z']:+.2f}"] for row in rows
    ]  # fmt: skip
    far = max(float("inf") if row["z"] is None else abs(row["z"]) for row in rows)
    return [
        f"Share of right answers: closed forms, and {found['lists']:,} lists decoded with exact denoisers\n"
        f"{table(header, lines)}",
        f"{len(rows)} closed forms; the furthest is {far:.2f} standard errors off.",
    ]


def _model(found: Mapping[str, Any]) -> list[str]:
    points = found["points"]
    return [_scores(found, points), _derived(found, points), _leaders(found, points)]


def _scores(found: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str:
    tasks, ways = _in_order(points, "task"), _in_order(points, "way")
    cells = {(point["way"], point["task"]): point for point in points}
    header = ["", "tokens a pass", "of text", *(task.rpartition("/")[2] for task in tasks), "mean", "strict"]
    lines = []
    for way in ways:
        of_way = [cells[way, task] for task in tasks]
        lines.append(
            [
                way,
                number(mean(point["tokens_per_pass"] for point in of_way)),
                number(mean(point["text_per_pass"] for point in of_way)),
                *(f"{point['score']:.0%}" for point in of_way),
                f"{mean(point['score'] for point in of_way):.0%}",
                f"{mean(point['strict'] for point in of_way):.0%}",
            ]
        )
    how = "greedy" if not found["temperature"] else f"temperature {found['temperature']:g}"
    families = ", ".join(dict.fromkeys(task.partition("/")[0] for task in tasks))
    canvases = " or ".join(map(str, dict.fromkeys(found["canvases"].values())))
    heading = f"Right answers of {found['samples']} a task ({families}), {how}, canvas {canvases}"
    return f"{heading}\n{table(header, lines)}"


def _derived(found: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str:
    kinds = [kind for kind in _in_order(points, "kind") if kind in TOP_K]
    header = ["", "oracle", "passes", "best threshold", "passes", "oracle over it",
              *(f"parallelizability, {kind}" for kind in kinds), "order preference"]  # fmt: skip
    lines, ratios = [], []
    for task in _in_order(points, "task"):
        of_task = [point for point in points if point["task"] == task]
        oracle, fixed = statistics.oracle(of_task), statistics.best_threshold(of_task)
        cells = ["-"] * 5
        if oracle is not None and fixed is not None:
            ratios.append(oracle["passes"] / fixed["passes"])
            cells = [f"{oracle['score']:.0%}", number(oracle["passes"]), f"{fixed['score']:.0%}",
                     number(fixed["passes"]), f"{ratios[-1]:.2f}"]  # fmt: skip
        slopes = [statistics.order_preference(of_task, kind, found["canvases"][task]) for kind in kinds]
        slope = next((f"{slope:+.3f}" for slope in slopes if slope is not None), "-")
        centres = [number(statistics.parallelizability(of_task, kind)) for kind in kinds]
        lines.append([task, *cells, *centres, slope])
    means = (
        f"\nThe oracle takes {mean(ratios):.2f} of the passes of the best fixed threshold, mean over tasks."
        if ratios
        else ""
    )
    return f"The best threshold for each question, and for each task\n{table(header, lines)}{means}"


def _leaders(found: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str:
    entries = statistics.leaderboard(points, found["least"])
    heading = f"Most tokens a pass with a mean score of {found['least']:.0%} or more"
    if not entries:
        return f"{heading}: none"
    lines = [[way, number(speed), f"{score:.0%}"] for way, speed, score in entries]
    return f"{heading}\n{table(['', 'tokens a pass', 'right answers'], lines)}"


def _in_order(points: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(point[key] for point in points))


def analytic(found: Mapping[str, Any]) -> str:
    """The closed forms as the documentation shows them."""
    return console("outlay bench parallel", report(found))


def lists(found: Mapping[str, Any]) -> str:
    """The list tasks as the documentation shows them: a line for each, a column for each way that is in the oracle or a
    schedule by confidence.
    """
    points = [point for point in found["points"] if point["kind"] in ("confidence", "threshold")]
    ways, cells = _in_order(points, "way"), {(point["task"], point["way"]): point for point in points}
    lines = [
        [task.rpartition("/")[2], *(f"{cells[task, way]['score']:.0%}" for way in ways)]
        for task in _in_order(points, "task")
    ]
    speeds = [mean(cells[task, way]["tokens_per_pass"] for task in _in_order(points, "task")) for way in ways]
    heading = f"Right answers of {found['samples']} a task"
    scores = f"{heading}\n{table(['', *ways], [*lines, ['tokens a pass', *map(number, speeds)]])}"
    summary = _derived(found, found["points"]).rpartition("\n")[2]
    text = "\n\n".join([machine.heading(found["machine"]), f"{scores}\n{summary}"])
    return console("outlay bench parallel --model tiny-lists", text)


TABLES = {"analytic": analytic, "lists": lists}
