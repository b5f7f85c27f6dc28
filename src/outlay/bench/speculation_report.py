"""The report of the speculation suite: a table for each set and temperature, and the goals beside what was reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from outlay.bench.interleave import Outcome, Spread, spread
from outlay.bench.table import console, number, table, times

SPEED = "tokens_per_second"
GREEDY, AUTO = "outlay greedy", "outlay auto"
GOALS = {"chat": 1.3, "code": 1.6, "summary": 2.0}
NEVER_BELOW, ASSISTED = 0.97, 4.0
COUNTED = ("tokens_per_pass", "drafted_per_token", "draft_passes_per_pass")


class Task(NamedTuple):
    """What was decoded; `beside`: beside other engines."""

    prompts: str
    temperature: float
    batch: int = 1
    beside: bool = False


class SpeculationReport:
    """Reads what the suite wrote."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.settings, self.machine, self.failures = found["settings"], found["machine"], found["failures"]
        self.names: list[str] = found["contenders"]
        self._values = {
            (row["contender"], row["prompts"], row["temperature"], row["batch"], row["beside"]): row["rounds"]
            for row in found["values"]
        }

    def series(self, name: str, task: Task, metric: str) -> list[float | None]:
        """Returns one metric of one contender, an entry a round."""
        return [None if values is None else values.get(metric) for values in self._values.get((name, *task), [])]

    def median(self, name: str, task: Task, metric: str) -> float | None:
        """Returns the median of a metric over the rounds."""
        found = spread(self.series(name, task, metric))
        return None if found is None else found.median

    def ratio(self, one: str, other: str, task: Task) -> Spread | None:
        """Returns the ratio of two contenders' speeds, paired by round."""
        return Outcome.paired(self.series(one, task, SPEED), self.series(other, task, SPEED))

    def heading(self) -> str:
        """What was measured, and where."""
        machine, settings = self.machine, self.settings
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        return (
            f"{machine['model']} on {machine['processor']}, {machine['cores']} cores, {settings['threads']} thread(s); "
            f"{machine['date']}\n{versions}\nmedians of {settings['rounds']} rounds, taken in turn in "
            f"{machine['seconds']:.0f} s; {settings['count']} prompts a set, {settings['new']} tokens each"
        )

    def section(self, prompts: str, temperature: float, batch: int) -> str:
        """Our methods on one set at one temperature: a row for each."""
        header = ["", "tok/s", "over greedy", "tok/pass", "drafted/tok", "draft/pass", "accepted by depth", "same"]
        task = Task(prompts, temperature, batch)
        reference, rows = self.series(GREEDY, task, "digest"), []
        for name in filter(lambda name: name.startswith("outlay"), self.names):
            if self.median(name, task, SPEED) is None:
                if name in self.failures and batch == 1:
                    rows.append([name, f"not measured: {self.failures[name]}"])
                continue
            depths = (self.median(name, task, f"accepted_{depth}") for depth in range(1, 5))
            shares = [share for share in depths if share is not None]
            same = self.series(name, task, "digest") == reference
            rows.append(
                [
                    name,
                    number(self.median(name, task, SPEED)),
                    "-" if name == GREEDY else times(self.ratio(name, GREEDY, task)),
                    *(number(self.median(name, task, metric)) for metric in COUNTED),
                    " ".join(f"{share:.0%}" for share in shares) or "-",
                    "-" if not reference else "yes" if same else "no",
                ]
            )
        if not rows:
            return ""
        what = f"temperature {temperature:g}" if batch == 1 else f"temperature 0, {batch} prompts together"
        return f"{prompts}, {what}\n{table(header, rows)}"

    def beside(self) -> str:
        """Other engines and ours on the same few prompts, and how many times as fast `auto` is."""
        tasks = [Task(prompts, temperature, beside=True) for prompts, temperature in self.pairs()]
        header = ["tok/s (auto over it)", *(f"{task.prompts}, T={task.temperature:g}" for task in tasks)]
        rows = []
        for name in self.names:
            if not any(self.series(name, task, SPEED) for task in tasks):
                if name in self.failures and not name.startswith("outlay"):
                    rows.append([name, f"not measured: {self.failures[name]}"])
                continue
            cells = []
            for task in tasks:
                ratio = self.ratio(AUTO, name, task)
                over = "" if name == AUTO or ratio is None else f" ({ratio.median:.2f}x)"
                cells.append(number(self.median(name, task, SPEED)) + over)
            rows.append([name, *cells])
        if not rows:
            return ""
        count, new = self.settings["beside"]
        return f"Beside other engines, {count} prompts x {new} tokens\n{table(header, rows)}"

    def pairs(self) -> list[tuple[str, float]]:
        """Every set at every temperature."""
        return [(name, temperature) for temperature in self.settings["temperatures"] for name in self.settings["sets"]]

    def goals(self) -> str:
        """The goals of the planner beside what was reached."""
        rows = []
        for prompts, temperature in self.pairs():
            ratio = self.ratio(AUTO, GREEDY, Task(prompts, temperature))
            if temperature:
                rows.append(_least(f"auto over sample, {prompts}, temperature {temperature:g}", NEVER_BELOW, ratio))
            elif prompts in GOALS:
                rows.append(_least(f"auto over greedy, {prompts}", GOALS[prompts], ratio))
        for prompts in self.settings["sets"]:
            batch = self.settings["batch"]
            ratio = self.ratio(AUTO, GREEDY, Task(prompts, 0.0, batch))
            rows.append(_least(f"auto over greedy, {prompts}, {batch} together", NEVER_BELOW, ratio))
        for name in self.names:
            for prompts in self.settings["sets"] if name.startswith("transformers") else ():
                ratio = self.ratio(AUTO, name, Task(prompts, 0.0, beside=True))
                if ratio is not None:
                    rows.append(_least(f"auto over {name}, {prompts}", ASSISTED, ratio))
        return f"Goals\n{table(['', 'wanted', 'reached', 'met'], rows)}" if rows else ""


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    speculation = SpeculationReport(found)
    settings = found["settings"]
    sections = [speculation.section(prompts, temperature, 1) for prompts, temperature in speculation.pairs()]
    batched = [speculation.section(prompts, 0.0, settings["batch"]) for prompts in settings["sets"]]
    parts = [speculation.heading(), *sections, *batched, speculation.beside(), speculation.goals()]
    return "\n\n".join(filter(None, parts))


def overview(found: Mapping[str, Any]) -> str:
    """Returns tokens a second over plain decoding and tokens a pass, ours, as a table of Markdown."""
    speculation = SpeculationReport(found)
    sets: Sequence[str] = found["settings"]["sets"]
    machine = found["machine"]
    lines = [
        f"{machine['model']}, {found['settings']['threads']} thread(s) of {machine['processor']}, "
        f"{machine['date'][:10]}, temperature 0, one prompt at a time: speed over greedy, and tokens a target pass:",
        "",
        "| | " + " | ".join(sets) + " |",
        "| --- |" + " --- |" * len(sets),
    ]
    for name in speculation.names:
        if not name.startswith("outlay") or name == GREEDY:
            continue
        cells = []
        for prompts in sets:
            ratio = speculation.ratio(name, GREEDY, Task(prompts, 0.0))
            passes = speculation.median(name, Task(prompts, 0.0), "tokens_per_pass")
            cells.append("-" if ratio is None else f"{ratio.median:.2f}x, {number(passes)}")
        strong = "**" if name == AUTO else ""
        lines.append(
            "| " + " | ".join(f"{strong}{cell}{strong}" for cell in (name.removeprefix("outlay "), *cells)) + " |"
        )
    return "\n".join(lines)


def _least(what: str, wanted: float, ratio: Spread | None) -> list[str]:
    met = "-" if ratio is None else "yes" if ratio.median >= wanted else "no"
    return [what, f"{wanted:.3g}x or more", times(ratio), met]


def goals(found: Mapping[str, Any]) -> str:
    """Returns what was measured, and the goals beside what was reached, as a block of Markdown."""
    speculation = SpeculationReport(found)
    return f"```\n{speculation.heading()}\n\n{speculation.goals()}\n```"


TABLES = {
    "report": lambda found: console("outlay bench speculation", report(found)), "overview": overview, "goals": goals
}  # fmt: skip
