"""The report of the steer suite, made of its results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from outlay import machine
from outlay.bench.steer.budgets import FORCING
from outlay.bench.steer.copying import RISKY, SAFE
from outlay.bench.steer.tasks import (
    DATE,
    FORMS,
    GREEDY,
    JSON,
    LONG_STRINGS,
    LOOKUP,
    OWN,
    PEOPLE,
    SAMPLE,
    STRINGS,
)
from outlay.spread import middle, paired_ratio
from outlay.tables import console, markdown, number, table, times

MASKS, AWRS = "masks", "awrs"
CONSTRAINTS, REWARDS, COPYING, THINKING = "constraints", "rewards", "copying", "thinking"  # the parts of the suite
OURS = "outlay"
Row = Sequence[str]
Table = tuple[Row, list[Row]]


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    tables: dict[str, Table] = {}
    if "values" in found:
        tables |= {
            "texts": texts(found),
            "ratios": ratios(found),
            "chains whose texts are enumerated": toy(found),
            "calls of a checker, a token": checks(found),
            "a token under a schema": pace(found),
            "schemas": schemas(found),
        }
    if REWARDS in found:
        tables |= {"a reward, at problems that are enumerated": rewards(found), "transfer_q over": gains(found)}
    if COPYING in found:
        tables["copies of memorised passages"] = copying(found)
    if THINKING in found:
        tables["thinking within a budget"] = thinking(found)
    parts = [heading(found)]
    parts += [f"{title}\n{table(header, rows)}" for title, (header, rows) in tables.items()]
    missing = [f"{name}: not measured: {reason}" for name, reason in found["failures"].items()]
    return "\n\n".join([*parts, *missing])


def heading(found: Mapping[str, Any]) -> str:
    """What was measured, and where."""
    settings = found["settings"]
    if "values" not in found:
        return machine.heading(found["machine"], 1)
    said = (
        f"texts of up to {settings['max_tokens']} tokens at temperature 1, {settings['count']} a round; "
        f"processor time; medians of {settings['rounds']} rounds in turn, ratios within a round with their range"
    )
    return f"{machine.heading(found['machine'], 1)}\n{said}"


def texts(found: Mapping[str, Any]) -> Table:
    """Each contender's share of valid texts, and what a text costs it."""
    header = ["", "under", "valid %", "CPU s a text", "passes", "checks", "tokens"]
    rows: list[Row] = []
    for constraint in (JSON, DATE):
        for each in _of(found, "Texts", constraint=constraint):
            cells = [number(middle(_values(each, name))) for name in ("cpu_seconds", "passes", "checks", "tokens")]
            shares = [value for value in _values(each, "valid") if value is not None]
            rows.append([_contender(found, each), constraint, f"{100 * mean(shares):.0f}", *cells])
    return header, rows


def ratios(found: Mapping[str, Any]) -> Table:
    """AWRS over masks, and over genlm-control's on the same weights."""
    rows: list[Row] = []
    methods = found["settings"]["methods"]
    for constraint in (JSON, DATE):
        ours = _one(found, "Texts", name=OURS, constraint=constraint, method=methods[AWRS])
        masks = _one(found, "Texts", name=OURS, constraint=constraint, method=methods[MASKS])
        rows.append([f"awrs over masks, {constraint}", _ratio(ours, masks, "cpu_seconds")])
        mine = _one(found, "Texts", name=f"{OURS}, float32", constraint=constraint, method=methods[AWRS])
        theirs = _one(found, "Texts", name="genlm-control, float32", constraint=constraint)
        if mine and theirs:
            rows.append([f"awrs over genlm-control's, float32, {constraint}", _ratio(mine, theirs, "cpu_seconds")])
    return ["CPU seconds a text", ""], rows


def toy(found: Mapping[str, Any]) -> Table:
    """Of each chain the weight of its likeliest text, and the total variation to the exact posterior."""
    header = ["chain", "weight of the likeliest text", "by awrs", "by masks", "distance of awrs", "of masks"]
    rows: list[Row] = [
        [
            name,
            f"{each['posterior']:.4f}",
            f"{each['awrs_weight']:.4f}",
            f"{each['masks_weight']:.4f}",
            f"{each['awrs_distance']:.4f}",
            f"{each['masks_distance']:.4f}",
        ]
        for name, each in found["toy"].items()
    ]
    return header, rows


def checks(found: Mapping[str, Any]) -> Table:
    """Of each form of text how often awrs and masks call the same checker, and how long it takes."""
    header = ["", "valid %", "masks", "awrs", "of masks", "their time"]
    methods, rows = found["settings"]["methods"], list[Row]()
    for form in FORMS:
        masks = _one(found, "Checks", form=form.name, method=methods[MASKS])
        ours = _one(found, "Checks", form=form.name, method=methods[AWRS])
        if masks and ours:
            valid = [value for each in (masks, ours) for value in _values(each, "valid") if value is not None]
            calls = [number(middle(_values(each, "checks"))) for each in (masks, ours)]
            shares = [_part(paired_ratio(_values(ours, name), _values(masks, name))) for name in ("checks", "seconds")]
            rows.append([form.name, f"{100 * mean(valid):.0f}", *calls, *shares])
    return header, rows


def pace(found: Mapping[str, Any]) -> Table:
    """What a token takes under a schema and under none, and how many passes."""
    rows: list[Row] = []
    pairs = [
        *((f"a list of objects, {method}", PEOPLE, "", method) for method in (GREEDY, SAMPLE, LOOKUP)),
        ("maxLength 100,000 over none, sample", LONG_STRINGS, STRINGS, SAMPLE),
    ]
    for title, schema, other, method in pairs:
        mine = _one(found, "Pace", schema=schema, method=method)
        base = _one(found, "Pace", schema=other, method=method)
        if mine and base:
            cells = [number(1000 * (middle(_values(each, "cpu_seconds")) or 0)) for each in (mine, base)]
            passes = number(middle(_values(mine, "passes")))
            rows.append([title, *cells, _ratio(mine, base, "cpu_seconds"), passes])
    return ["", "CPU ms", "without", "ratio", "passes a token"], rows


def schemas(found: Mapping[str, Any]) -> Table:
    """The first mask of a large schema, and the official suite's cases."""
    rows: list[Row] = []
    for each in _of(found, "FirstMask"):
        seconds = middle(_values(each, "cpu_seconds"))
        rows.append([f"first mask of {each['properties']} properties", f"{1000 * (seconds or 0):.0f} CPU ms"])
    counts = found["official"]
    said = ", ".join(f"{count} {what}" for what, count in counts.items())
    rows.append([f"JSON Schema suite, {sum(counts.values()):,} cases", said])
    return ["", ""], rows


def rewards(found: Mapping[str, Any]) -> Table:
    """Each way's mean reward, its KL to the reference, and what a text costs it."""
    header = ["", "reward", "KL, nats", "passes", "positions", "with exact values"]
    exact = found[REWARDS]["exact"]
    rows: list[Row] = [
        [
            each["name"],
            f"{each['reward']:.3f}",
            f"{each['kl']:.2f}",
            f"{each['passes']:.1f}",
            f"{each['positions']:.1f}",
            f"{exact[each['name']]:.3f}" if each["name"] in exact else "",
        ]
        for each in found[REWARDS]["contenders"]
    ]
    return header, rows


def gains(found: Mapping[str, Any]) -> Table:
    """The reward of transfer_q, the last contender, over that of each other."""
    *others, ours = found[REWARDS]["contenders"]
    return ["reward over", ""], [[each["name"], f"{ours['reward'] / each['reward']:.2f}x"] for each in others]


def copying(found: Mapping[str, Any]) -> Table:
    """Of each contender what it copies, and the share of the gap between both models that it closes, in both respects.

    The reduction of copies is 100% where it copies as little as the safe model, the gain in usefulness where the judge
    finds its other texts as probable as the risky model's.
    """
    header = ["", "k, or share", "copied %", "copies avoided %", "judge's nats", "gap closed %", "budget spent %"]
    measured: Sequence[Mapping[str, Any]] = found.get(COPYING, ())
    ends, rows = {each["name"]: each for each in measured}, list[Row]()
    for each in measured:
        safe, risky = ends[SAFE], ends[RISKY]
        value = "-" if each["name"] in (SAFE, RISKY) else f"{each['value']:g}"
        avoided = (risky["copied"] - each["copied"]) / (risky["copied"] - safe["copied"])
        closed = (safe["nats"] - each["nats"]) / (safe["nats"] - risky["nats"])
        spent = f"{100 * each['spent']:.0f}" if each["spent"] else "-"
        shares = [f"{100 * share:.0f}" for share in (each["copied"], avoided, closed)]
        rows.append([each["name"], value, shares[0], shares[1], f"{each['nats']:.2f}", shares[2], spent])
    return header, rows


def thinking(found: Mapping[str, Any]) -> Table:
    """Of each budget what guidance and cutting off give: right answers, and thinking tokens against the budget."""
    header = ["thinking", "budget", "right %", "over cut off", "tokens", "of the budget", "forced %", "calls a text"]
    rows, cut = list[Row](), 0.0
    for each in found[THINKING]["rows"]:
        cut = each["right"] if each["method"] == FORCING else cut
        gained = f"{each['right'] / cut:.2f}x" if cut and each["method"] != FORCING else ""
        budget = f"{each['tokens']} ({100 * each['share']:.0f} %)" if each["tokens"] else "none"
        of_budget = f"{each['thinking'] / each['tokens']:.2f}" if each["tokens"] else ""
        rows.append(
            [each["method"], budget, f"{100 * each['right']:.1f}", gained, f"{each['thinking']:.1f}", of_budget,
             f"{100 * each['forced_stops']:.1f}", f"{each['predictor_calls']:.1f}"]
        )  # fmt: skip
    return header, rows


def _contender(found: Mapping[str, Any], each: Mapping[str, Any]) -> str:
    called = {method: name for name, method in found["settings"]["methods"].items()}
    return each["name"] if each["method"] == OWN else f"{each['name']}: {called[each['method']]}"


def _of(found: Mapping[str, Any], task: str, **wanted: Any) -> list[Mapping[str, Any]]:
    return [
        each
        for each in found["values"]
        if each["task"] == task and any(each["values"]) and all(each[name] == value for name, value in wanted.items())
    ]


def _one(found: Mapping[str, Any], task: str, **wanted: Any) -> Mapping[str, Any] | None:
    return next(iter(_of(found, task, **wanted)), None)


def _values(each: Mapping[str, Any], metric: str) -> list[float | None]:
    return [values and values.get(metric) for values in each["values"]]


def _ratio(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None, metric: str) -> str:
    return times(paired_ratio(_values(one, metric), _values(other, metric))) if one and other else "-"


def _part(ratio: Any) -> str:
    return "-" if ratio is None else f"1/{1 / ratio.median:,.0f} (1/{1 / ratio.low:,.0f}-1/{1 / ratio.high:,.0f})"


def _markdown(rows: Table) -> str:
    return markdown(*rows)


TABLES = {
    "report": lambda found: console("outlay bench steer", report(found)),
    "texts": lambda found: _markdown(texts(found)),
    "ratios": lambda found: _markdown(ratios(found)),
    "toy": lambda found: _markdown(toy(found)),
    "checks": lambda found: _markdown(checks(found)),
    "pace": lambda found: _markdown(pace(found)),
    "schemas": lambda found: _markdown(schemas(found)),
    "rewards": lambda found: _markdown(rewards(found)),
    "gains": lambda found: _markdown(gains(found)),
    "copying": lambda found: _markdown(copying(found)),
    "thinking": lambda found: _markdown(thinking(found)),
}
