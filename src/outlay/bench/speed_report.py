"""The report of the speed suite: a table for each question, and the goals beside what was reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlay.bench.interleave import Outcome, Spread
from outlay.bench.speed_result import read
from outlay.bench.speed_settings import Settings
from outlay.bench.table import console, number, table, times
from outlay.bench.tasks import Decode, Prompt, ReadMemory

SPEED = "tokens_per_second"
QUIET = 0.03  # of a core: what a process that waits may use


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    return "\n\n".join(filter(None, SpeedReport(*read(found)).sections(found["machine"])))


def overview(found: Mapping[str, Any]) -> str:
    """Returns tokens a second with one thread, ours and everyone's, as a table of Markdown."""
    settings, outcome = read(found)
    speeds = SpeedReport(settings, outcome)
    threads = settings.threads[0]
    tasks = settings.decodes(threads)
    machine = found["machine"]
    lines = [
        f"{machine['model']}, {_threads(threads)} of {machine['processor']}, {machine['date'][:10]}, tokens a second:",
        "",
        "| | " + " | ".join(f"batch {task.batch}" for task in tasks) + " |",
        "| --- |" + " --- |" * len(tasks),
    ]
    for name in speeds.names:
        cells = [number(outcome.median(name, task, SPEED)) for task in tasks]
        if set(cells) != {"-"}:
            version = outcome.facts.get(name, {}).get("version")
            label = f"{name.split()[0]} {version}{name.removeprefix(name.split()[0])}" if version else name
            strong = "**" if name == speeds.ours[0] else ""
            lines.append("| " + " | ".join(f"{strong}{cell}{strong}" for cell in (label, *cells)) + " |")
    return "\n".join(lines)


class SpeedReport:
    """Reads an outcome by what the suite asks."""

    def __init__(self, settings: Settings, outcome: Outcome) -> None:
        self.settings, self.outcome = settings, outcome
        self.ours = [f"outlay {format}" for format in settings.formats]
        self.names = [name for name in [*outcome.facts, *outcome.failures] if name != "memory"]
        self.names = sorted(dict.fromkeys(self.names), key=lambda name: (not name.startswith("outlay"), name))
        self.peers = [name for name in self.names if name not in self.ours]

    def sections(self, machine: dict[str, Any]) -> list[str]:
        """Returns the sections in their order; empty where there is nothing to say."""
        by_threads = [
            part
            for threads in self.settings.threads
            for part in (
                self.decoding(threads),
                self.against_peers(threads),
                self.floor(threads),
                self.prompt(threads),
                self.passes(threads),
            )
        ]
        return [
            self.heading(machine),
            *by_threads,
            self.own_share(),
            self.disturbed(),
            *(self.goals(threads) for threads in self.settings.threads),
            self.restless(),
        ]

    def heading(self, machine: dict[str, Any]) -> str:
        """What was measured, and where."""
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        return (
            f"{machine['model']} on {machine['processor']}, {machine['cores']} cores; {machine['date']}\n{versions}\n"
            f"medians of {self.settings.rounds} rounds, taken in turn in {machine['seconds']:.0f} s; "
            f"prompts of {self.settings.prompt} tokens, greedy"
        )

    def decoding(self, threads: int) -> str:
        """Tokens a second and milliseconds a step, a row for each contender."""
        tasks = self.settings.decodes(threads)
        header = ["", *(f"{unit} x{task.batch}" for task in tasks for unit in ("tok/s", "ms"))]
        rows = []
        for name in self.names:
            cells = [number(self.outcome.median(name, task, metric)) for task in tasks for metric in (SPEED, "step_ms")]
            failure = self.outcome.failures.get(name)
            if failure is not None and not any(cell != "-" for cell in cells):
                rows.append([name, f"not measured: {failure}"])
            else:
                rows.append([name, *cells])
                rows += [["", f"then dropped out: {failure}"]] if failure else []
        return _section(f"Decoding, {_threads(threads)} (ms: a token for every sequence)", header, rows)

    def against_peers(self, threads: int) -> str:
        """Our speed with the weights as the file holds them over each peer's."""
        tasks = self.settings.decodes(threads)
        header = ["", *(f"batch {task.batch}" for task in tasks)]
        rows = [
            [peer, *(times(self.outcome.ratio((self.ours[0], task), (peer, task), SPEED)) for task in tasks)]
            for peer in self.peers
        ]
        rows = [row for row in rows if any(cell != "-" for cell in row[1:])]
        return _section(f"{self.ours[0]} over others, {_threads(threads)}", header, rows)

    def floor(self, threads: int) -> str:
        """What reading the weights alone takes, and how far we are from it."""
        bandwidth = self.outcome.median("memory", ReadMemory(threads), "bytes_per_second")
        header = ["", "MB a pass", "floor ms", "ms", "over the floor"]
        rows = []
        for name in self.ours:
            weight = self.outcome.facts.get(name, {}).get("weight_bytes")
            if weight is None or bandwidth is None:
                continue
            took = self.outcome.median(name, self.settings.decode(1, threads), "step_ms")
            over = times(self.over_floor(name, threads))
            rows.append([name, number(weight / 1e6), number(1000 * weight / bandwidth), number(took), over])
        speed = f"{bandwidth / 1e9:.1f} GB/s" if bandwidth else "not measured"
        return _section(f"Floor, {_threads(threads)}: memory is read at {speed}", header, rows)

    def over_floor(self, name: str, threads: int) -> Spread | None:
        """Returns the time of a token at batch 1 over that of reading the weights, paired by round."""
        weight = self.outcome.facts.get(name, {}).get("weight_bytes")
        bandwidths = self.outcome.series("memory", ReadMemory(threads), "bytes_per_second")
        floors = [1000 * weight / bandwidth if weight and bandwidth else None for bandwidth in bandwidths]
        return self.outcome.paired(self.outcome.series(name, self.settings.decode(1, threads), "step_ms"), floors)

    def prompt(self, threads: int) -> str:
        """How fast a long prompt is read, and our speed over each other engine's."""
        task = Prompt(threads)
        rows = [
            [name, number(speed), times(self.outcome.ratio((self.ours[0], task), (name, task), SPEED))]
            for name in self.names
            if (speed := self.outcome.median(name, task, SPEED)) is not None
        ]
        return _section(
            f"A prompt of {task.length} tokens, {_threads(threads)}", ["", "tok/s", f"{self.ours[0]} over it"], rows
        )

    def passes(self, threads: int) -> str:
        """The cost of a pass by its width, in milliseconds and over that of one row."""
        task = self.settings.passes(threads)
        header = ["new nodes", *map(str, task.widths)]
        rows = []
        for name in self.ours:
            cells = [number(self.outcome.median(name, task, f"ms{width}")) for width in task.widths]
            if cells[0] != "-":
                over = [self.over_one_row(name, width, threads) for width in task.widths]
                rows.append([name, *cells])
                rows.append(["  over one row", *("-" if ratio is None else f"{ratio.median:.2f}" for ratio in over)])
        title = f"Milliseconds of a pass after {task.prompt} tokens, with all its logits, {_threads(task.threads)}"
        return _section(title, header, rows)

    def over_one_row(self, name: str, width: int, threads: int) -> Spread | None:
        """Returns the time of a pass over `width` rows over that of one row, paired by round."""
        task = self.settings.passes(threads)
        return self.outcome.paired(
            self.outcome.series(name, task, f"ms{width}"), self.outcome.series(name, task, "ms1")
        )

    def own_share(self) -> str:
        """What a tick takes beside its pass."""
        tasks = [task for threads in self.settings.threads for task in self.settings.decodes(threads)]
        header = ["", *(f"batch {task.batch}, {_threads(task.threads)}" for task in tasks)]
        rows = [[name, *(number(self.outcome.median(name, task, "own_ms")) for task in tasks)] for name in self.ours]
        return _section("The engine's own milliseconds a tick", header, [row for row in rows if set(row[1:]) != {"-"}])

    def disturbed(self) -> str:
        """What another program on a core costs."""
        if not self.settings.busy:
            return ""
        quiet, busy = self.settings.decode(1, self.settings.threads[-1]), self.settings.disturbed()
        rows = [
            [
                name,
                number(self.outcome.median(name, quiet, "step_ms")),
                number(self.outcome.median(name, busy, "step_ms")),
                times(self.outcome.ratio((name, busy), (name, quiet), "step_ms")),
            ]
            for name in self.names
            if self.outcome.median(name, busy, "step_ms") is not None
        ]
        return _section(
            f"A core shared with another program, {_threads(quiet.threads)}", ["", "ms", "ms, shared", "slower"], rows
        )

    def goals(self, threads: int) -> str:
        """The goals of the project beside what was reached."""
        ours = self.ours[0]
        one, many = self.settings.decode(1, threads), self.settings.decode(max(self.settings.new), threads)
        baseline = self.baseline(one) or "transformers"
        rows = [
            _least(f"batch 1 over {peer}", least, self.outcome.ratio((ours, one), (peer, one), SPEED))
            for peer, least in ((baseline, 3.5), ("llama-cpp-python", 1.33), ("openvino-genai", 1.33))
        ]
        prompt = Prompt(threads)
        if self.outcome.median(ours, prompt, SPEED):
            over = self.outcome.ratio((ours, prompt), ("llama-cpp-python", prompt), SPEED)
            rows.append(_least(f"a prompt of {prompt.length} tokens over llama-cpp-python", 5.0, over))
        gain = self.outcome.ratio((ours, many), (ours, one), SPEED)
        rows.append(_least(f"batch {many.batch} over batch 1", 10.0, gain))
        rows += [
            _most(f"{name}: {width} rows over one", most, self.over_one_row(name, width, threads))
            for width, most in ((16, 1.3), (32, 1.6), (64, 2.2))
            for name in self.ours[:2]
            if self.outcome.median(name, self.settings.passes(threads), "ms1")
        ]
        rows += [_most(f"{name} over its floor", 1.6, self.over_floor(name, threads)) for name in self.ours]
        for task in (one, many):
            own = self.outcome.median(ours, task, "own_ms")
            met = "-" if own is None else _yes(own <= 0.5)
            rows.append([f"the engine's own share, batch {task.batch}", "0.5 ms or less", f"{number(own)} ms", met])
        if self.settings.busy and threads == self.settings.threads[-1]:
            slower = self.outcome.ratio((ours, self.settings.disturbed()), (ours, one), "step_ms")
            rows.append(_most("a core shared with another program, slower", 2.5, slower))
        return _section(f"Goals, {_threads(threads)}", ["", "wanted", "reached", "met"], rows)

    def baseline(self, task: Decode) -> str | None:
        """Returns the faster of `transformers`' float types."""
        speeds = {
            name: speed
            for name in self.peers
            if name.startswith("transformers") and (speed := self.outcome.median(name, task, SPEED))
        }
        return max(speeds, key=lambda name: speeds[name]) if speeds else None

    def restless(self) -> str:
        """Names those whose processes used a core while others were measured."""
        found = [(name, share) for name, share in self.outcome.idle.items() if share > QUIET]
        return "\n".join(
            f"{name} kept up to {share:.0%} of a core busy while others were measured" for name, share in found
        )


def _least(what: str, wanted: float, ratio: Spread | None) -> list[str]:
    met = "-" if ratio is None else _yes(ratio.median >= wanted)
    return [what, f"{wanted:.3g}x or more", times(ratio), met]


def _most(what: str, wanted: float, ratio: Spread | None) -> list[str]:
    met = "-" if ratio is None else _yes(ratio.median <= wanted)
    return [what, f"{wanted:.3g}x or less", times(ratio), met]


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"{title}\n{table(header, rows)}" if rows else ""


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


TABLES = {"report": lambda found: console("outlay bench speed --busy", report(found)), "overview": overview}
