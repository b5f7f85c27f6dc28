"""The report of searches for programs: pass rates on examples that no search saw, what they cost, and ratios."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from outlay import machine
from outlay.compare.statistics import mean as mean_of
from outlay.compare.statistics import ratio
from outlay.tables import number, table

Contender = Mapping[str, Any]
GREEDY, BEAM, SAMPLES, PLANNED, ABLATED = "greedy", "beam", "sampling + filtering", "pgtd", "pgtd, ablated"
"""The curves on which contenders lie."""
SPENT = ("programs", "scores", "passes", "positions")
"""What is counted of each."""
COUNTED = 8  # problems on which something was counted, from which on there is a ratio: resamples of fewer have none


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    return "\n\n".join([heading(found), overview(found), ratios(found), beside_greedy(found)])


def heading(found: Mapping[str, Any]) -> str:
    """What was measured, and where."""
    settings = found["settings"]
    said = (
        f"{settings['count']} problems of {settings['problems']}, samples at temperature {settings['temperature']:g}; "
        "means a problem, with 95 % intervals"
    )
    return f"{machine.heading(found['machine'], 1)}\n{said}"


def overview(found: Mapping[str, Any]) -> str:
    """A row for each contender: all private examples passed, private and public pass rates, and what it spent."""
    header = ["", "solved %", "private %", "public %", "programs", "scores", "passes", "positions computed"]
    rows = [
        [
            each["name"],
            _share(each["solved"]),
            f"{100 * mean(each['private']):.0f}",
            f"{100 * mean(each['public']):.0f}",
            *(number(mean(each[spent])) for spent in SPENT),
        ]
        for each in found["contenders"]
    ]
    rows += [[name, f"not measured: {reason}"] for name, reason in found["failures"].items()]
    return table(header, rows)


def ratios(found: Mapping[str, Any]) -> str:
    """PG-TD beside sampling and filtering with as many programs, beside greedy, and its caches beside none."""
    of_curve = {
        curve: [each for each in found["contenders"] if each["curve"] == curve] for curve in (GREEDY, SAMPLES, PLANNED)
    }
    rows = [_compared(mine, other) for mine, other in zip(of_curve[PLANNED], of_curve[SAMPLES], strict=False)]
    rows += [_compared(of_curve[PLANNED][-1], other) for other in of_curve[GREEDY] if of_curve[PLANNED]]
    known = {each["name"]: each for each in found["contenders"]}
    for name, without in known.items():
        cached = known.get(name.removesuffix(",caches=false"))
        if cached is not None and cached is not without:
            rows.append(_compared(cached, without))
    return table(["ratios of means", "", "", "", ""], rows)


def beside_greedy(found: Mapping[str, Any]) -> str:
    """On how many problems a search's program passes fewer public examples than the greedy one."""
    greedy = next((each for each in found["contenders"] if each["curve"] == GREEDY), None)
    planned = [each for each in found["contenders"] if each["curve"] == PLANNED]
    if greedy is None or not planned:
        return "nothing to compare with greedy"
    worse = sum(mine < base for mine, base in zip(planned[-1]["public"], greedy["public"], strict=True))
    return (
        f"{planned[-1]['name']} passes fewer public examples than greedy on {worse} of {len(greedy['public'])} problems"
    )


def _compared(mine: Contender, other: Contender) -> list[str]:
    parts = [f"{mine['name']} over {other['name']}"]
    for what in ("solved", "private", "passes", "positions"):
        if sum(map(bool, other[what])) >= COUNTED:
            found = ratio(mine[what], other[what])
            parts.append(f"{what} {found.value:.2f}x ({found.low:.2f}-{found.high:.2f})")
        else:
            parts.append(f"{what} {number(mean(mine[what]))} to {number(mean(other[what]))}")
    return parts


def _share(values: list[float]) -> str:
    share = mean_of(values)
    return f"{100 * share.value:.1f} ({100 * share.low:.1f}-{100 * share.high:.1f})"
