"""The report of the hydragen suite, made of its results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlay import machine
from outlay.spread import middle, paired_ratio
from outlay.tables import markdown, number, table, times

Row = Sequence[str]
NEVER = 1 << 40  # from here on a length says that reading apart never pays


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    parts = [heading(found)]
    for title, (header, rows) in {
        "texts": texts(found),
        "from the shortest prefix to the longest": slowdown(found),
        "attention alone": attention(found),
        "planting a request, ms": planting(found),
        "shared keys from which on reading them apart pays, by rows": sharing(found),
    }.items():
        parts.append(f"{title}\n{table(header, rows)}")
    missing = [f"{name}: not measured: {reason}" for name, reason in found["failures"].items()]
    return "\n\n".join([*parts, *missing])


def heading(found: Mapping[str, Any]) -> str:
    """What was measured, and where."""
    settings = found["settings"]
    said = (
        f"texts of {settings['new']} tokens, one thread, processor time; medians of {settings['rounds']} rounds, "
        "ratios within a round with their range"
    )
    return f"{machine.heading(found['machine'], 1)}\n{said}"


def texts(found: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Tokens a second, over a copy for each, the bytes held, and what a longer prefix costs."""
    header = ["", "texts", "prefix", "tokens/s", "over copies", "MB held", "of copies", "same tokens", "as alone"]
    rows: list[Row] = []
    for each in _of(found, "Texts"):
        name, task = each["name"], (each["rows"], each["prefix"])
        copy = _series(found, f"a copy for each, {_kv(name)}", "Texts", task)
        speed, held = _values(each, "tokens_per_second"), middle(_values(each, "held_bytes"))
        ours = name.startswith("hydragen")
        over = times(paired_ratio(speed, _values(copy, "tokens_per_second"))) if ours and copy else ""
        less = middle(_values(copy, "held_bytes")) if ours and copy else None
        same = _values(each, "tokens") == _values(copy, "tokens") if ours and copy else None
        alone = [value for value in _values(each, "alone") if value is not None]
        rows.append(
            [
                name,
                str(task[0]),
                _length(task[1]),
                number(middle(speed)),
                over,
                "" if held is None else number(held / 1e6),
                f"1/{less / held:.1f}" if less and held else "",
                "" if same is None else "yes" if same else "no",
                "" if not alone else "yes" if all(alone) else "no",
            ]
        )
    return header, rows


def slowdown(found: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """A token after the longest prefix over one after the shortest, and that over the same with copies."""
    settings = found["settings"]
    short, long = settings["prefixes"][0], settings["prefixes"][-1]
    rows: list[Row] = []
    for rows_at_once in settings["rows"]:
        for name in dict.fromkeys(each["name"] for each in _of(found, "Texts")):
            ends = [_steps(found, name, (rows_at_once, length)) for length in (long, short)]
            if not all(ends):
                continue
            other = f"a copy for each, {_kv(name)}"
            copies = [_steps(found, other, (rows_at_once, length)) for length in (long, short)]
            over = name.startswith("hydragen") and all(copies)
            rows.append(
                [
                    name,
                    str(rows_at_once),
                    times(paired_ratio(*ends)),
                    times(paired_ratio(_quotients(*ends), _quotients(*copies))) if over else "",
                ]
            )
    return ["", "texts", f"a token after {long:,} over one after {short:,}", "over that with copies"], rows


def attention(found: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Attention alone, and torch's over copies in float32 over it."""
    header = ["", "rows", "prefix", "ms", "torch's float32 over it"]
    rows: list[Row] = []
    for each in _of(found, "AttentionAlone"):
        task = (each["rows"], each["prefix"])
        torchs = _series(found, "torch over copies, float32", "AttentionAlone", task)
        ratio = paired_ratio(_values(torchs, "ms"), _values(each, "ms")) if torchs else None
        rows.append([each["name"], str(task[0]), _length(task[1]), number(middle(_values(each, "ms"))), times(ratio)])
    return header, rows


def planting(found: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """What planting a request and forking a prefix take, by the prefix's length."""
    rows: list[Row] = [
        [_length(each["prefix"]), *(number(middle(_values(each, name))) for name in ("held_ms", "found_ms", "fork_ms"))]
        for each in _of(found, "Planting")
        if _kv(each["name"]) == found["settings"]["kv"][0]
    ]
    return ["prefix", "held", "found by the prefix cache", "a fork"], rows


def sharing(found: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """The break-even of each cache format."""
    measured = _of(found, "Sharing")
    names = list(measured[0]["values"][0]) if measured else []
    rows: list[Row] = [
        [_kv(each["name"]), *(_length(middle(_values(each, rows)) or 0) for rows in names)] for each in measured
    ]
    return ["cache", *names], rows


def _of(found: Mapping[str, Any], task: str) -> list[Mapping[str, Any]]:
    done = [each for each in found["values"] if each["task"] == task and any(each["values"])]
    names = [*found["facts"], *(each["name"] for each in done)]
    return sorted(done, key=lambda each: (names.index(each["name"]), each.get("rows", 0), each.get("prefix", 0)))


def _series(found: Mapping[str, Any], name: str, task: str, place: tuple[int, int]) -> Mapping[str, Any] | None:
    return next(
        (each for each in _of(found, task) if (each["name"], each["rows"], each["prefix"]) == (name, *place)), None
    )


def _values(each: Mapping[str, Any] | None, metric: str) -> list[float | None]:
    return [values and values.get(metric) for values in each["values"]] if each else []


def _steps(found: Mapping[str, Any], name: str, place: tuple[int, int]) -> list[float | None]:
    return _values(_series(found, name, "Texts", place), "step_ms")


def _quotients(above: Sequence[float | None], below: Sequence[float | None]) -> list[float | None]:
    return [one / other if one and other else None for one, other in zip(above, below, strict=True)]


def _kv(name: str) -> str:
    return name.rpartition(", ")[2]


def _length(length: float) -> str:
    return "never" if length > NEVER else f"{length:,.0f}"


def _markdown(rows: tuple[Row, list[Row]]) -> str:
    return markdown(*rows)


TABLES = {
    "texts": lambda found: _markdown(texts(found)),
    "slowdown": lambda found: _markdown(slowdown(found)),
    "attention": lambda found: _markdown(attention(found)),
    "planting": lambda found: _markdown(planting(found)),
    "sharing": lambda found: _markdown(sharing(found)),
}
