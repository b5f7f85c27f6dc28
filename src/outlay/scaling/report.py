"""The tables of `outlay plan`, made of what it writes as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlay import machine
from outlay.scaling.laws import fit_loglinear
from outlay.scaling.points import Point
from outlay.tables import console, number, table


def report(found: Mapping[str, Any]) -> str:
    """Returns the laws, their predictions, the choice for each batch, and the speeds that were measured in batches."""
    points = found["points"]
    header = ["law in", "slope a decade", "95 %", "R2", "log-linear is"]
    laws = [_law_row(axis, law) for axis, law in found["laws"].items()]
    parts = [f"{points[0]['what']}, of {len(points)} points\n{table(header, laws)}"]
    if found["predictions"]:
        rows = list(map(_predicted_row, found["predictions"]))
        parts.append(table(["tokens, layers", "measured", "predicted", "95 %", ""], rows))
    if found["choices"]:
        rows = [_choice_row(batch, choice["all"][0]) for batch, choice in found["choices"].items() if choice["all"]]
        advice = [f"at batch {batch}: {_advice(choice['best'])}" for batch, choice in found["choices"].items()]
        parts.append("\n".join([table(["batch", "best draft head", "tau", "speed-up", "95 %"], rows), *advice]))
    if found["speeds"]:
        parts.append(_speeds(found["speeds"]))
    if found["notes"]:
        parts.append("\n".join(f"no law: {note}" for note in found["notes"]))
    return "\n\n".join(parts)


def split_report(found: Mapping[str, Any]) -> str:
    """Returns a table of splits for each batch; `found` is what `outlay plan --split` writes as JSON."""
    return "\n\n".join([machine.heading(found["machine"]), *map(_splits, found["split"])])


def _splits(plan: Mapping[str, Any]) -> str:
    task, splits = plan["task"], plan["splits"]
    balanced = min(splits, key=lambda split: abs(split["encoder"] - split["decoder"]))
    unit = "inputs/s" if task["seconds"] is None else "RTFx"
    header = ["encoder/decoder", "M weights", "encode ms", "decode ms", unit, "faster", "quality"]
    rows = [
        [
            f"{split['encoder']}/{split['decoder']}", number(split["params"] / 1e6),
            number(split["encode_seconds"] * 1e3), number(split["decode_seconds"] * 1e3), number(split["rate"]),
            f"{balanced['seconds'] / split['seconds']:.2f}x", split["quality"],
        ]
        for split in splits
    ]  # fmt: skip
    heading = f"batch {task['batch']}: {task['inputs']} places in, {task['outputs']} tokens out"
    faster = f"faster: than {balanced['encoder']}/{balanced['decoder']}, the most balanced; predicted, not run"
    return f"{heading}\n{table(header, rows)}\n{faster}"


def _law_row(axis: str, law: Mapping[str, Any]) -> list[str]:
    low, high = law["ci95"]
    form = "adequate" if law["adequate"] else f"not, {law['best_form']} is"
    return [axis, f"{law['slope']:.3f}", f"{low:.3f} to {high:.3f}", f"{law['r2']:.3f}", form]


def _predicted_row(each: Mapping[str, Any]) -> list[str]:
    known = each["measured"]
    return [
        f"{each['tokens']:,.0f}, {each['layers']:g}",
        "-" if known is None else f"{known:.2f}",
        f"{each['value']:.2f}",
        f"{each['low']:.2f} to {each['high']:.2f}",
        each["warning"],
    ]


def _choice_row(batch: str, fastest: Mapping[str, Any]) -> list[str]:
    return [
        batch,
        f"{fastest['layers']} layers, a chain of {fastest['depth']}",
        f"{fastest['tau']:.2f}",
        f"{fastest['speedup']:.2f}x",
        f"{fastest['low']:.2f} to {fastest['high']:.2f}",
    ]


def _advice(best: Mapping[str, Any] | None) -> str:
    if best is None:
        return "draft nothing: no speed-up is above 1 with its whole interval"
    command = f"outlay train draft --layers {best['layers']} --tokens {best['tokens']:.0f}"
    return f"{command}, and draft {best['depth']} tokens a round"


def _speeds(speeds: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows = [
        [f"{plain['batch']:g}", f"{plain['value']:.0f}", f"{drafted['value']:.0f}",
         f"{drafted['value'] / plain['value']:.2f}x"]
        for plain, drafted in zip(*speeds.values(), strict=True)
    ]  # fmt: skip
    lines = [
        "measured with a trained draft head, a chain of 4",
        table(["batch", "plain tok/s", "drafted tok/s", ""], rows),
    ]
    for name, points in speeds.items():
        law = fit_loglinear([Point(**point) for point in points], "batch")
        form = "adequate" if law.adequate else f"not: {law.best_form}"
        lines.append(
            f"{name}: {law.intercept:.1f} + {law.slope:.1f} log10 batch, R2 {law.r2:.3f}, log-linear is {form}"
        )
    return "\n".join(lines)


def _dated(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['model']} on {machine['processor']}, {machine['cores']} cores; {machine['date']}\n{versions}"


TABLES = {"report": lambda found: console("outlay plan", f"{_dated(found)}\n\n{report(found)}")}
