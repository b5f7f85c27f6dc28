"""The report of the speed suite: a table for each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlay import machine
from outlay.bench.interleave import Measurements
from outlay.bench.speed.result import read
from outlay.bench.speed.settings import SpeedSettings
from outlay.bench.speed.tasks import PeakProducts, Prompt, ReadMemory
from outlay.spread import Spread, paired_ratio
from outlay.tables import bold, console, markdown, number, table, times

SPEED = "tokens_per_second"
WIDEST = 64  # rows of a pass whose efficiency is shown
QUIET = 0.03  # of a core: what a process that waits may use


def report(found: Mapping[str, Any]) -> str:
    """Returns the whole report as text; `found` is what the suite writes as JSON."""
    return "\n\n".join(filter(None, SpeedReport(*read(found)).sections(found["machine"])))


def overview(found: Mapping[str, Any]) -> str:
    """Returns tokens a second with the fewest threads, ours and everyone's, as a table of Markdown."""
    settings, measured = read(found)
    speeds = SpeedReport(settings, measured)
    threads = settings.threads[0]
    tasks = settings.decodes(threads)
    rows = []
    for name in speeds.names:
        cells = [number(measured.median(name, task, SPEED)) for task in tasks]
        if set(cells) != {"-"}:
            version = measured.facts.get(name, {}).get("version")
            label = f"{name.split()[0]} {version}{name.removeprefix(name.split()[0])}" if version else name
            rows.append(bold([label, *cells]) if name == speeds.ours[0] else [label, *cells])

    about = found["machine"]
    measured_on = f"{about['model']}, {_threads(threads)} of {about['processor']}, {about['date'][:10]}"
    return f"{measured_on}, tokens a second:\n\n{markdown(['', *(f'batch {task.batch}' for task in tasks)], rows)}"


class SpeedReport:
    """A section for each question that the suite asks."""

    def __init__(self, settings: SpeedSettings, measured: Measurements) -> None:
        self.settings, self.measured = settings, measured
        self.ours = [f"outlay {format}" for format in settings.formats]
        self.names = [name for name in [*measured.facts, *measured.failures] if name != "memory"]
        self.names = sorted(dict.fromkeys(self.names), key=lambda name: (not name.startswith("outlay"), name))
        self.peers = [name for name in self.names if name not in self.ours]

    def sections(self, about: Mapping[str, Any]) -> list[str]:
        """Returns the sections in their order; empty where nothing was measured. `about` describes the machine."""
        by_threads = [
            part
            for threads in self.settings.threads
            for part in (
                self.decoding(threads),
                self.against_peers(threads),
                self.batching(threads),
                self.floor(threads),
                self.efficiency(threads),
                self.prompt(threads),
                self.passes(threads),
            )
        ]
        return [
            self.heading(about),
            *by_threads,
            self.likelihoods(),
            self.own_share(),
            self.disturbed(),
            self.noise(),
        ]

    def heading(self, about: Mapping[str, Any]) -> str:
        """What was measured, and where."""
        return (
            f"{machine.heading(about)}\nmedians of {self.settings.rounds} rounds, taken in turn; "
            f"prompts of {self.settings.prompt} tokens, greedy"
        )

    def decoding(self, threads: int) -> str:
        """Tokens a second and milliseconds a step, a row for each contender."""
        tasks = self.settings.decodes(threads)
        header = ["", *(f"{unit} x{task.batch}" for task in tasks for unit in ("tok/s", "ms"))]
        rows = []
        for name in self.names:
            cells = [
                number(self.measured.median(name, task, metric)) for task in tasks for metric in (SPEED, "step_ms")
            ]
            failure = self.measured.failures.get(name)
            if failure is not None and not any(cell != "-" for cell in cells):
                rows.append([name, f"not measured: {failure}"])
            else:
                rows.append([name, *cells])
                rows += [["", f"then dropped out: {failure}"]] if failure else []
        return _section(f"Decoding, {_threads(threads)} (ms: a token for every sequence)", header, rows)

    def against_peers(self, threads: int) -> str:
        """Our speed in the first format over everyone else's."""
        tasks = self.settings.decodes(threads)
        header = ["", *(f"batch {task.batch}" for task in tasks)]
        rows = [
            [peer, *(times(self.measured.ratio((self.ours[0], task), (peer, task), SPEED)) for task in tasks)]
            for peer in self.peers
        ]
        rows = [row for row in rows if any(cell != "-" for cell in row[1:])]
        return _section(f"{self.ours[0]} over others, {_threads(threads)}", header, rows)

    def batching(self, threads: int) -> str:
        """What our formats gain in tokens a second from larger batches."""
        one, *larger = self.settings.decodes(threads)
        header = ["", *(f"batch {task.batch}" for task in larger)]
        rows = [
            [name, *(times(self.measured.ratio((name, task), (name, one), SPEED)) for task in larger)]
            for name in self.ours
        ]
        rows = [row for row in rows if any(cell != "-" for cell in row[1:])]
        return _section(f"Tokens a second over batch {one.batch}, {_threads(threads)}", header, rows)

    def floor(self, threads: int) -> str:
        """What reading the weights alone takes, and how many times that a token takes."""
        bandwidth = self.measured.median("memory", ReadMemory(threads), "bytes_per_second")
        header = ["", "MB a pass", "floor ms", "ms", "over the floor"]
        rows = []
        for name in self.ours:
            weight = self.measured.facts.get(name, {}).get("weight_bytes")
            if weight is None or bandwidth is None:
                continue
            took = self.measured.median(name, self.settings.decode(1, threads), "step_ms")
            over = times(self.over_floor(name, threads))
            rows.append([name, number(weight / 1e6), number(1000 * weight / bandwidth), number(took), over])
        speed = f"{bandwidth / 1e9:.1f} GB/s" if bandwidth else "not measured"
        return _section(f"Floor, {_threads(threads)}: memory is read at {speed}", header, rows)

    def over_floor(self, name: str, threads: int) -> Spread | None:
        """Returns the time of a token at batch 1 over that of reading the weights, paired by round."""
        weight = self.measured.facts.get(name, {}).get("weight_bytes")
        bandwidths = self.measured.series("memory", ReadMemory(threads), "bytes_per_second")
        floors = [1000 * weight / bandwidth if weight and bandwidth else None for bandwidth in bandwidths]
        return paired_ratio(self.measured.series(name, self.settings.decode(1, threads), "step_ms"), floors)

    def efficiency(self, threads: int) -> str:
        """The least time that the machine allows over what was measured: passes by their width, and a prompt."""
        task, prompt = self.settings.passes(threads), Prompt(threads)
        widths = [width for width in task.widths if width <= WIDEST]
        rows = []
        for name in self.ours:
            cells = []
            for width in widths:
                limit = self.limit_ms(name, threads, width, width)
                took = self.measured.median(name, task, f"ms{width}")
                cells.append(_share(limit, took))
            speed = self.measured.median(name, prompt, SPEED)
            took = 1000 * prompt.length / speed if speed else None
            cells.append(_share(self.limit_ms(name, threads, prompt.length, 1), took))
            if set(cells) != {"-"}:
                rows.append([name, *cells])
        title = f"Efficiency, {_threads(threads)}: the machine's limit over the time of a pass, by its rows"
        return _section(title, ["", *map(str, widths), f"prompt of {prompt.length}"], rows)

    def limit_ms(self, name: str, threads: int, rows: int, head_rows: int) -> float | None:
        """Returns the milliseconds in which weights can be read, or rows multiplied with them, whichever takes longer.

        Args:
            name: One of our formats.
            threads: How many threads read and multiply.
            rows: Rows of the pass.
            head_rows: How many of them go through the LM head.
        """
        facts = self.measured.facts.get(name, {})
        bandwidth = self.measured.median("memory", ReadMemory(threads), "bytes_per_second")
        products, head = facts.get("products"), facts.get("head_products")
        if bandwidth is None or products is None or head is None:
            return None
        seconds = 0.0
        for form, count in products.items():
            peak = self.measured.median("memory", PeakProducts(threads), form)
            if peak is None:
                return None
            seconds += (count * rows - head.get(form, 0) * (rows - head_rows)) / peak
        return 1000 * max(facts["weight_bytes"] / bandwidth, seconds)

    def likelihoods(self) -> str:
        """What everyone makes of the same text: who reads it wrong is not to be compared with."""
        tasks = self.settings.likelihoods()
        header = ["", *(f"{task.width} rows a pass" for task in tasks)]
        rows = [[name, *(_nats(self.measured.median(name, task, "nats")) for task in tasks)] for name in self.names]
        rows = [row for row in rows if set(row[1:]) != {"-"}]
        title = f"Negative log-likelihood of {len(self.settings.text)} tokens, nats a token"
        return _section(title, header, rows) if tasks else ""

    def prompt(self, threads: int) -> str:
        """How fast a long prompt is read, and our speed over each other engine's."""
        task = Prompt(threads)
        rows = [
            [name, number(speed), times(self.measured.ratio((self.ours[0], task), (name, task), SPEED))]
            for name in self.names
            if (speed := self.measured.median(name, task, SPEED)) is not None
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
            cells = [number(self.measured.median(name, task, f"ms{width}")) for width in task.widths]
            if cells[0] != "-":
                over = [self.over_one_row(name, width, threads) for width in task.widths]
                rows.append([name, *cells])
                rows.append(["  over one row", *("-" if ratio is None else f"{ratio.median:.2f}" for ratio in over)])
        title = f"Milliseconds of a pass after {task.prompt} tokens, with all its logits, {_threads(task.threads)}"
        return _section(title, header, rows)

    def over_one_row(self, name: str, width: int, threads: int) -> Spread | None:
        """Returns the time of a pass over `width` rows over that of one row, paired by round."""
        task = self.settings.passes(threads)
        return paired_ratio(self.measured.series(name, task, f"ms{width}"), self.measured.series(name, task, "ms1"))

    def own_share(self) -> str:
        """What a tick takes beside its pass."""
        tasks = [task for threads in self.settings.threads for task in self.settings.decodes(threads)]
        header = ["", *(f"batch {task.batch}, {_threads(task.threads)}" for task in tasks)]
        rows = [[name, *(number(self.measured.median(name, task, "own_ms")) for task in tasks)] for name in self.ours]
        return _section("The engine's own milliseconds a tick", header, [row for row in rows if set(row[1:]) != {"-"}])

    def disturbed(self) -> str:
        """What another program on a core costs."""
        if not self.settings.busy:
            return ""
        quiet, busy = self.settings.decode(1, self.settings.threads[-1]), self.settings.disturbed()
        rows = [
            [
                name,
                number(self.measured.median(name, quiet, "step_ms")),
                number(self.measured.median(name, busy, "step_ms")),
                times(self.measured.ratio((name, busy), (name, quiet), "step_ms")),
            ]
            for name in self.names
            if self.measured.median(name, busy, "step_ms") is not None
        ]
        return _section(
            f"A core shared with another program, {_threads(quiet.threads)}", ["", "ms", "ms, shared", "slower"], rows
        )

    def noise(self) -> str:
        """Names those whose processes used a core while others were measured."""
        found = [(name, share) for name, share in self.measured.idle.items() if share > QUIET]
        return "\n".join(
            f"{name} kept up to {share:.0%} of a core busy while others were measured" for name, share in found
        )


def _share(limit: float | None, took: float | None) -> str:
    return "-" if limit is None or took is None else f"{limit / took:.2f}"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"{title}\n{table(header, rows)}" if rows else ""


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


TABLES = {"report": lambda found: console("outlay bench speed --busy", report(found)), "overview": overview}
