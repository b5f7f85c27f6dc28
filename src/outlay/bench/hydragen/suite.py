"""`outlay bench hydragen`: texts that share a prefix beside copies of it, in turn; attention alone; planting."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay.bench.hydragen.ours import Ours
from outlay.bench.hydragen.peers import IkLlamaCppCopies, LlamaCppCopies, TorchAttention, TransformersCopies
from outlay.bench.hydragen.plot import write_plot
from outlay.bench.hydragen.report import report
from outlay.bench.hydragen.tasks import AttentionAlone, HydragenTask, Planting, Sharing, Texts
from outlay.bench.interleave import Participant, interleave
from outlay.bench.options import check_folder_of, names
from outlay.bench.suite import Suite
from outlay.compare import plots
from outlay.errors import UsageError
from outlay.progress import ShowProgress
from outlay.tree.cache import KV_DTYPES

PEERS = ("transformers", "llama-cpp-python", "ik-llama-cpp-python", "torch")
TASK_LIMIT = 600.0  # seconds: copies of a long prefix are slow


@dataclass(frozen=True)
class HydragenSettings:
    """What the suite measures."""

    rows: tuple[int, ...]
    """Numbers of texts."""
    prefixes: tuple[int, ...]
    """Lengths of the prefix, ascending."""
    kv: tuple[str, ...]
    """Cache formats; those after the first, and `transformers`, at the middle prefix alone."""
    new: int
    """Tokens of a text."""
    peers: tuple[str, ...]
    rounds: int
    plot: Path | None = None
    """Where the picture is written."""

    @property
    def middle(self) -> int:
        """The prefix at which everything is measured."""
        return self.prefixes[len(self.prefixes) // 2]

    def tasks(self) -> list[HydragenTask]:
        """Returns all tasks, in their order."""
        return [
            *(Texts(rows, prefix, self.new) for rows in self.rows for prefix in (1, *self.prefixes)),
            *(AttentionAlone(rows, prefix) for rows, prefix in ((32, 2048), (64, 1024))),
            *(Planting(prefix) for prefix in (1000, 16000)),
            Sharing(),
        ]


class HydragenSuite(Suite[HydragenSettings]):
    """Everyone takes turns at the same prefixes, with one thread, in processor time."""

    packages = ("outlay", "torch", "transformers", "llama-cpp-python", "ik-llama-cpp-python")

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        shown = "(%(default)s)"
        parser.add_argument("--batch", default="64", metavar="N,N", help=f"texts at once {shown}")
        parser.add_argument("--prefix", default="256,1024,2048", metavar="N,N", help=f"tokens of a prefix {shown}")
        parser.add_argument("--kv", default="bfloat16,float32,int8", metavar="A,B", help=f"cache formats {shown}")
        parser.add_argument("--new", type=int, default=32, metavar="N", help=f"tokens of a text {shown}")
        parser.add_argument("--peers", default=",".join(PEERS), metavar="A,B", help=f"other engines, or none {shown}")
        parser.add_argument("--rounds", type=int, default=2, metavar="N", help=f"rounds after the warm-up {shown}")
        parser.add_argument("--plot", type=Path, metavar="FILE", help="draw speed and bytes over prefixes (.png, .svg)")

    def settings(self, args: argparse.Namespace) -> HydragenSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        for name, least in (("new", 3), ("rounds", 1)):
            if getattr(args, name) < least:
                raise UsageError(f"--{name} must be {least} or more, not {getattr(args, name)}")
        kv = names("cache format", args.kv, tuple(KV_DTYPES))
        if not kv:
            raise UsageError(f"--kv needs a cache format: {', '.join(KV_DTYPES)}")
        peers = () if args.peers == "none" else names("peer", args.peers, PEERS)
        check_folder_of(args.plot)
        if args.plot is not None and not plots.available():
            raise UsageError("--plot needs matplotlib: pip install 'outlay[plots]'")
        batch, prefixes = _numbers("batch", args.batch, 2), _numbers("prefix", args.prefix, 2)
        return HydragenSettings(batch, prefixes, kv, args.new, peers, args.rounds, args.plot)

    def measure(self, settings: HydragenSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns a series of each value, an entry a round, for each participant and task."""
        everyone = participants(settings, model)
        found = interleave(everyone, settings.tasks(), settings.rounds, task_limit=TASK_LIMIT, progress=progress)
        values = [
            {"name": each.name, "task": type(task).__name__, **asdict(task), "values": found.values[each.name, task]}
            for each in everyone
            for task in settings.tasks()
            if (each.name, task) in found.values
        ]
        asked = {name: value for name, value in asdict(settings).items() if name != "plot"}
        result = {
            "settings": asked | {"middle": settings.middle},
            "values": values,
            "facts": found.facts,
            "failures": found.failures,
        }
        if settings.plot is not None:
            write_plot(result, settings.plot)
        return result

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)

    def failure(self, found: Mapping[str, Any]) -> str | None:
        """Returns why hydragen could not be measured, None where it was."""
        failures: Mapping[str, str] = found["failures"]
        return next((reason for name, reason in failures.items() if name.startswith("hydragen")), None)


class AtMiddle(Ours):
    """Ours, at one prefix alone."""

    def __init__(self, source: str, kv: str, middle: int, *, copies: bool = False) -> None:
        super().__init__(source, kv, copies=copies)
        self.middle = middle

    def takes(self, task: Any) -> bool:
        """As ours, but for texts after other prefixes."""
        return super().takes(task) and (not isinstance(task, Texts) or task.prefix == self.middle)


def participants(settings: HydragenSettings, model: Path) -> list[Participant]:
    """Returns everyone who takes part."""
    source, first, middle = str(model), settings.kv[0], settings.middle
    everyone: list[Participant] = [Ours(source, first), Ours(source, first, copies=True)]
    everyone += [AtMiddle(source, kv, middle, copies=copies) for kv in settings.kv[1:] for copies in (False, True)]
    peers: dict[str, list[Participant]] = {
        "transformers": [TransformersCopies(source, "bfloat16", middle)],
        "llama-cpp-python": [LlamaCppCopies(model)],
        "ik-llama-cpp-python": [IkLlamaCppCopies(model)],
        "torch": [TorchAttention(source, dtype) for dtype in ("float32", "bfloat16")],
    }
    return [*everyone, *(each for name in settings.peers for each in peers[name])]


def _numbers(name: str, text: str, least: int) -> tuple[int, ...]:
    """Returns the numbers in `text`, ascending. Raises `UsageError` for what is no number, or is too small."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"--{name} takes numbers with commas between them, such as 256,1024; not {text!r}") from None
    if found[0] < least:
        raise UsageError(f"--{name} must be {least} or more, not {found[0]}")
    return tuple(found)


SUITE = HydragenSuite()
