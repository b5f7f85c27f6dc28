"""The report of the search suite: what each contender gave and spent, two curves, and ratios with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from outlay import machine
from outlay.bench.search import program_report as programs
from outlay.bench.search.lookahead import ALWAYS, BEAM, GREEDY, OURS, RANDOM, UNUSED
from outlay.compare.statistics import Interval, difference, ratio
from outlay.compare.statistics import mean as mean_of
from outlay.tables import console, number, table

Contender = Mapping[str, Any]
PEER = "its_hub particles"
"""The curve of its_hub's particle filter."""


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    if "lookahead" in found:
        return lookahead(found)
    if "scorers" not in found:
        return programs.report(found)
    return "\n\n".join([heading(found), overview(found), curves(found), ratios(found)])


def heading(found: Mapping[str, Any]) -> str:
    """What was measured, and where."""
    settings = found["settings"]
    said = (
        f"{settings['count']} problems of {settings['problems']} (its_hub: the first {settings['beside']}), "
        f"temperature {settings['temperature']:g}, scorer {settings['scorer']}; means a problem, with 95 % intervals"
    )
    about = [f"{machine.heading(found['machine'], 1)}\n{said}"]
    for name, rated in found["scorers"].items():
        about.append(
            f"{name}: AUC of first errors against right steps within a depth {rated['auc']:.3f} "
            f"({rated['errors']:.0f} errors, {rated['right']:.0f} right steps)"
        )
    return "\n".join(about)


def overview(found: Mapping[str, Any]) -> str:
    """A row for each contender."""
    header = ["", "right %", "tokens drawn", "scores", "positions computed"]
    rows = [
        [
            each["name"],
            _share(mean_of(each["right"])),
            number(mean(each["tokens"])),
            number(mean(each["scores"])),
            number(mean(each["positions"])),
        ]
        for each in found["contenders"]
    ]
    rows += [[name, f"not measured: {reason}"] for name, reason in found["failures"].items()]
    return table(header, rows)


def curves(found: Mapping[str, Any]) -> str:
    """Accuracy against tokens, and against scores, a line for each kind of search."""
    lines: dict[str, list[Contender]] = {}
    for each in found["contenders"]:
        lines.setdefault(each["curve"], []).append(each)
    parts = []
    for spent in ("tokens", "scores"):
        rows = []
        for curve, points in lines.items():
            drawn = sorted((mean(point[spent]), 100 * mean(point["right"])) for point in points)
            if any(amount for amount, _ in drawn):
                rows.append([curve, "  ".join(f"{amount:.0f}: {right:.0f} %" for amount, right in drawn)])
        parts.append(f"accuracy against {spent}\n" + table(["", "", ""], rows).lstrip("\n "))
    return "\n\n".join(parts)


def ratios(found: Mapping[str, Any]) -> str:
    """A* beside best of n and particles, and both beside its_hub's particles."""
    known = {each["name"]: each for each in found["contenders"]}
    ours, many = _largest(known, "particles"), _largest(known, "best of, by reward")
    best, hub = known.get("astar:k=4 [scores=128]"), [each for each in found["contenders"] if each["curve"] == PEER]
    pairs = [(best, many, "tokens"), (best, ours, "tokens"), (best, ours, "scores")]
    pairs += [(best, each, "scores") for each in hub[-1:]] + [(ours, each, "positions") for each in hub]
    rows = [_compared(mine, other, spent) for mine, other, spent in pairs if mine is not None and other is not None]
    return table(["ratios of means", "", ""], rows)


def lookahead(found: Mapping[str, Any]) -> str:
    """What AdaDec gives and spends beside greedy decoding, beam search and its controls."""
    settings, fit = found["settings"], found["threshold"]
    said = (
        f"{settings['count']} tasks of {Path(settings['tasks']).name}, {settings['max_tokens']} tokens at most; means "
        "with 95 % intervals, positions without those of prompts\n"
        f"threshold {fit['threshold']:.3f} nats, learned from {fit['tokens']} tokens of other tasks' solutions: "
        f"{fit['right']:.1%} are the first choice, {fit['pause_rate']:.1%} pause, AUC {fit['auc']:.3f}"
    )
    header = ["", "right %", "log-probability a token", "passes a token", "positions a token", "steps that pause"]
    rows = []
    for each in found["lookahead"]:
        tokens = sum(each["tokens"])
        spent = [number(sum(each[name]) / tokens) for name in ("passes", "positions")]
        paused = f"{sum(each['pauses']) / tokens:.1%}" if sum(each["pauses"]) else ""
        rows.append([each["name"], _share(mean_of(each["right"])), f"{mean(each['logprob']):.3f}", *spent, paused])
    known = {each["name"]: each for each in found["lookahead"]}
    pairs = [
        (OURS, GREEDY, "passes"), (OURS, UNUSED, "passes"), (OURS, GREEDY, "positions"), (OURS, BEAM, "positions"),
        (OURS, ALWAYS, "positions"), (UNUSED, RANDOM, "positions"),
    ]  # fmt: skip
    compared = [
        [*_compared(known[mine], known[other], spent), f"log-probability {_logprob(known[mine], known[other])}"]
        for mine, other, spent in pairs
    ]
    ratios = table(["ratios of means", "", "", ""], compared)
    return "\n\n".join([f"{machine.heading(found['machine'], 1)}\n{said}", table(header, rows), ratios])


def _logprob(mine: Contender, other: Contender) -> str:
    value = difference(mine["logprob"], other["logprob"])
    return f"{value.value:+.3f} ({value.low:+.3f} to {value.high:+.3f})"


def _compared(mine: Contender, other: Contender, spent: str) -> list[str]:
    same = len(other["right"])  # its_hub answers the first problems only
    return [
        f"{mine['name']} over {other['name']}",
        f"{spent} {_times(ratio(mine[spent][:same], other[spent]))}",
        f"right {_points(difference(mine['right'][:same], other['right']))}",
    ]


def _largest(known: Mapping[str, Contender], curve: str) -> Contender | None:
    """Returns the contender of a curve that draws most."""
    return max((each for each in known.values() if each["curve"] == curve), key=_tokens, default=None)


def _tokens(each: Contender) -> float:
    return mean(each["tokens"])


def _share(value: Interval) -> str:
    return f"{100 * value.value:.0f} ({100 * value.low:.0f}-{100 * value.high:.0f})"


def _times(value: Interval) -> str:
    return f"{value.value:.2f}x ({value.low:.2f}-{value.high:.2f})"


def _points(value: Interval) -> str:
    return f"{100 * value.value:+.1f} ({100 * value.low:+.1f} to {100 * value.high:+.1f}) points"


def _console(found: Mapping[str, Any]) -> str:
    """The report of a lookahead below the command that made it."""
    settings = found["settings"]
    words = ["outlay bench search --lookahead", Path(settings["tasks"]).name]
    words += [f"--{name.replace('_', '-')} {settings[name]}" for name in ("count", "references", "max_tokens")]
    return console(" ".join(words), lookahead(found))


TABLES = {
    "report": lambda found: console("outlay bench search", report(found)),
    "programs": lambda found: console("outlay bench search --problems minilist", report(found)),
    "lookahead": _console,
}
