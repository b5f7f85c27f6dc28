"""The report of the speculation suite: a table for each set and temperature, and one beside other engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from outlay import machine
from outlay.bench.interleave import Measurements
from outlay.spread import Spread
from outlay.tables import bold, console, markdown, number, table, times

SPEED = "tokens_per_second"
GREEDY, AUTO = "outlay greedy", "outlay auto"
COUNTED = ("tokens_per_pass", "drafted_per_token", "draft_passes_per_pass")


class Case(NamedTuple):
    """What was decoded: a set at a temperature, alone, in a batch, or `beside` other engines."""

    prompts: str
    temperature: float
    batch: int = 1
    beside: bool = False


class SpeculationReport:
    """The parts of the report, from what the suite wrote."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.settings, self.machine, self.failures = found["settings"], found["machine"], found["failures"]
        self.names: list[str] = found["contenders"]
        self.measured = Measurements(
            {
                (row["contender"], Case(row["prompts"], row["temperature"], row["batch"], row["beside"])): row["rounds"]
                for row in found["values"]
            }
        )

    def ratio(self, one: str, other: str, case: Case) -> Spread | None:
        """Returns the ratio of two participants' speeds, paired by round."""
        return self.measured.ratio((one, case), (other, case), SPEED)

    def heading(self) -> str:
        """What was measured, and where."""
        settings = self.settings
        return (
            f"{machine.heading(self.machine, settings['threads'])}\nmedians of {settings['rounds']} rounds, taken in "
            f"turn; {settings['count']} prompts a set, {settings['new']} tokens each"
        )

    def section(self, prompts: str, temperature: float, batch: int) -> str:
        """Our methods on one set at one temperature: a row for each."""
        header = ["", "tok/s", "over greedy", "tok/pass", "drafted/tok", "draft/pass", "accepted by depth", "same"]
        case = Case(prompts, temperature, batch)
        rows = []
        for name in filter(lambda name: name.startswith("outlay"), self.names):
            if self.measured.median(name, case, SPEED) is not None:
                rows.append(self._row(name, case))
            elif name in self.failures and batch == 1:
                rows.append([name, f"not measured: {self.failures[name]}"])
        if not rows:
            return ""
        what = f"temperature {temperature:g}" if batch == 1 else f"temperature 0, {batch} prompts together"
        return f"{prompts}, {what}\n{table(header, rows)}"

    def _row(self, name: str, case: Case) -> list[str]:
        """One method: its speed, what it drafted, the acceptance rate by depth, and whether it wrote greedy's texts."""
        depths = (self.measured.median(name, case, f"accepted_{depth}") for depth in range(1, 5))
        rates = [rate for rate in depths if rate is not None]
        reference = self.measured.series(GREEDY, case, "digest")
        same = self.measured.series(name, case, "digest") == reference
        return [
            name,
            number(self.measured.median(name, case, SPEED)),
            "-" if name == GREEDY else times(self.ratio(name, GREEDY, case)),
            *(number(self.measured.median(name, case, metric)) for metric in COUNTED),
            " ".join(f"{rate:.0%}" for rate in rates) or "-",
            "-" if not reference else "yes" if same else "no",
        ]

    def beside(self) -> str:
        """Other engines and ours on the same few prompts, and how many times as fast `auto` is."""
        cases = [Case(prompts, temperature, beside=True) for prompts, temperature in self.pairs()]
        header = ["tok/s (auto over it)", *(f"{case.prompts}, T={case.temperature:g}" for case in cases)]
        rows = []
        for name in self.names:
            if any(self.measured.series(name, case, SPEED) for case in cases):
                rows.append([name, *(self._beside(name, case) for case in cases)])
            elif name in self.failures and not name.startswith("outlay"):
                rows.append([name, f"not measured: {self.failures[name]}"])
        if not rows:
            return ""
        count, new = self.settings["beside"]
        return f"Beside other engines, {count} prompts x {new} tokens\n{table(header, rows)}"

    def _beside(self, name: str, case: Case) -> str:
        ratio = self.ratio(AUTO, name, case)
        over = "" if name == AUTO or ratio is None else f" ({ratio.median:.2f}x)"
        return number(self.measured.median(name, case, SPEED)) + over

    def pairs(self) -> list[tuple[str, float]]:
        """Every set at every temperature."""
        return [(name, temperature) for temperature in self.settings["temperatures"] for name in self.settings["sets"]]

    def gains(self) -> str:
        """What `auto` gains over plain decoding on each set: alone at each temperature, and in a batch."""
        batch, temperatures = self.settings["batch"], self.settings["temperatures"]
        header = ["auto over plain decoding", *(f"T={temperature:g}" for temperature in temperatures)]
        rows = []
        for prompts in self.settings["sets"]:
            cases = [*(Case(prompts, temperature) for temperature in temperatures), Case(prompts, 0.0, batch)]
            rows.append([prompts, *(times(self.ratio(AUTO, GREEDY, case)) for case in cases)])
        return table([*header, f"T=0, {batch} together"], rows)


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    speculation = SpeculationReport(found)
    settings = found["settings"]
    sections = [speculation.section(prompts, temperature, 1) for prompts, temperature in speculation.pairs()]
    batched = [speculation.section(prompts, 0.0, settings["batch"]) for prompts in settings["sets"]]
    parts = [speculation.heading(), *sections, *batched, speculation.beside()]
    return "\n\n".join(filter(None, parts))


def overview(found: Mapping[str, Any]) -> str:
    """Returns tokens a second over plain decoding and tokens a pass, ours, as a table of Markdown."""
    speculation = SpeculationReport(found)
    sets: Sequence[str] = found["settings"]["sets"]
    rows = []
    for name in speculation.names:
        if not name.startswith("outlay") or name == GREEDY:
            continue
        cells = []
        for prompts in sets:
            ratio = speculation.ratio(name, GREEDY, Case(prompts, 0.0))
            passes = speculation.measured.median(name, Case(prompts, 0.0), "tokens_per_pass")
            cells.append("-" if ratio is None else f"{ratio.median:.2f}x, {number(passes)}")
        row = [name.removeprefix("outlay "), *cells]
        rows.append(bold(row) if name == AUTO else row)

    about = found["machine"]
    return (
        f"{about['model']}, {found['settings']['threads']} thread(s) of {about['processor']}, {about['date'][:10]}, "
        "temperature 0, one prompt at a time: speed over greedy, and tokens a target pass:\n\n"
        f"{markdown(['', *sets], rows)}"
    )


def gains(found: Mapping[str, Any]) -> str:
    """Returns what was measured, and what `auto` gains, as a block of Markdown."""
    speculation = SpeculationReport(found)
    return f"```\n{speculation.heading()}\n\n{speculation.gains()}\n```"


TABLES = {
    "report": lambda found: console("outlay bench speculation", report(found)), "overview": overview, "gains": gains
}  # fmt: skip
