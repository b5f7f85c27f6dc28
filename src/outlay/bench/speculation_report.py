"""The report of the speculation suite: a table for each set and temperature, and the goals beside what was reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlay.bench.interleave import Outcome, Spread, spread
from outlay.bench.table import console, number, table, times

SPEED = "tokens_per_second"
GREEDY, AUTO = "outlay greedy", "outlay auto"
GOALS = {"chat": 1.3, "code": 1.6, "summary": 2.0}


class SpeculationReport:
    """Reads what the suite wrote."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.settings, self.machine, self.failures = found["settings"], found["machine"], found["failures"]
        self.names: list[str] = found["contenders"]
        self._values = {
            (row["contender"], row["prompts"], row["temperature"], row["batch"]): row["rounds"]
            for row in found["values"]
        }

    def series(self, name: str, prompts: str, temperature: float, batch: int, metric: str) -> list[float | None]:
        """Returns one metric of one contender, an entry a round."""
        rounds = self._values.get((name, prompts, temperature, batch), [])
        return [None if values is None else values.get(metric) for values in rounds]

    def median(self, name: str, prompts: str, temperature: float, batch: int, metric: str) -> float | None:
        """Returns the median of a metric over the rounds."""
        found = spread(self.series(name, prompts, temperature, batch, metric))
        return None if found is None else found.median

    def ratio(self, one: str, other: str, prompts: str, temperature: float, batch: int) -> Spread | None:
        """Returns the ratio of two contenders' speeds, paired by round."""
        return Outcome.paired(*(self.series(name, prompts, temperature, batch, SPEED) for name in (one, other)))

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
        """One set at one temperature: a row for each contender."""
        header = ["", "tok/s", "over greedy", "tok/pass", "drafted/tok", "draft/pass", "accepted by depth", "same"]
        reference = self.series(GREEDY, prompts, temperature, batch, "digest")
        rows = []
        for name in self.names:
            median = lambda metric, name=name: self.median(name, prompts, temperature, batch, metric)  # noqa: E731
            if median(SPEED) is None:
                if name in self.failures and batch == 1:
                    rows.append([name, f"not measured: {self.failures[name]}"])
                continue
            shares = [share for depth in range(1, 5) if (share := median(f"accepted_{depth}")) is not None]
            same = [
                a == b
                for a, b in zip(self.series(name, prompts, temperature, batch, "digest"), reference, strict=False)
            ]
            ours = name.startswith("outlay")
            rows.append(
                [
                    name,
                    number(median(SPEED)),
                    "-" if name == GREEDY else times(self.ratio(name, GREEDY, prompts, temperature, batch)),
                    number(median("tokens_per_pass")) if ours else "-",
                    number(median("drafted_per_token")) if ours else "-",
                    number(median("draft_passes_per_pass")) if ours else "-",
                    " ".join(f"{share:.0%}" for share in shares) or "-",
                    ("yes" if all(same) else "no") if ours and same else "-",
                ]
            )
        if not rows:
            return ""
        what = f"temperature {temperature:g}" if batch == 1 else f"temperature 0, {batch} prompts together"
        return f"{prompts}, {what}\n{table(header, rows)}"

    def goals(self) -> str:
        """The goals of the planner beside what was reached."""
        rows = []
        for prompts in self.settings["sets"]:
            least = GOALS.get(prompts)
            if least is not None:
                rows.append(_least(f"auto over greedy, {prompts}", least, self.ratio(AUTO, GREEDY, prompts, 0.0, 1)))
        for prompts in self.settings["sets"]:
            for temperature in self.settings["temperatures"]:
                if temperature:
                    ratio = self.ratio(AUTO, GREEDY, prompts, temperature, 1)
                    rows.append(_least(f"auto over sample, {prompts}, temperature {temperature:g}", 0.97, ratio))
        for prompts in self.settings["sets"]:
            batch = self.settings["batch"]
            ratio = self.ratio(AUTO, GREEDY, prompts, 0.0, batch)
            rows.append(_least(f"auto over greedy, {prompts}, {batch} together", 0.97, ratio))
        for name in self.names:
            if name.startswith("transformers"):
                for prompts in self.settings["sets"]:
                    ratio = self.ratio(AUTO, name, prompts, 0.0, 1)
                    if ratio is not None:
                        rows.append(_least(f"auto over {name}, {prompts}", 4.0, ratio))
        return f"Goals\n{table(['', 'wanted', 'reached', 'met'], rows)}" if rows else ""


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    speculation = SpeculationReport(found)
    settings = found["settings"]
    sections = [
        speculation.section(prompts, temperature, 1)
        for temperature in settings["temperatures"]
        for prompts in settings["sets"]
    ]
    batched = [speculation.section(prompts, 0.0, settings["batch"]) for prompts in settings["sets"]]
    parts = [speculation.heading(), *sections, *batched, speculation.goals()]
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
            ratio = speculation.ratio(name, GREEDY, prompts, 0.0, 1)
            passes = speculation.median(name, prompts, 0.0, 1, "tokens_per_pass")
            cells.append("-" if ratio is None else f"{ratio.median:.2f}x, {number(passes)}")
        strong = "**" if name == AUTO else ""
        lines.append(
            "| " + " | ".join(f"{strong}{cell}{strong}" for cell in (name.removeprefix("outlay "), *cells)) + " |"
        )
    return "\n".join(lines)


def _least(what: str, wanted: float, ratio: Spread | None) -> list[str]:
    met = "-" if ratio is None else "yes" if ratio.median >= wanted else "no"
    return [what, f"{wanted:.3g}x or more", times(ratio), met]


TABLES = {"report": lambda found: console("outlay bench speculation", report(found)), "overview": overview}
