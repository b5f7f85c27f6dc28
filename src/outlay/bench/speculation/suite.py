"""`outlay bench speculation`: our methods with their drafts beside plain decoding, and beside other engines."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from outlay.bench.data import DATA
from outlay.bench.interleave import Measurements, Participant, Values, interleave
from outlay.bench.options import names, refuse_below_one
from outlay.bench.speculation.report import report
from outlay.bench.speculation.speculators import (
    LlamaSpeculative,
    OurMethod,
    Speculate,
    TransformersAssisted,
    name_of,
    summed,
)
from outlay.bench.suite import Suite
from outlay.errors import UsageError
from outlay.models.load import load_model
from outlay.progress import ShowProgress

SETS = ("chat", "code", "summary")
EARLY, LAST_SKIPPED = (
    10,
    29,
)  # the first layers of the target draft, for transformers and for ours; the rest are skipped
TASK_LIMIT = 1800.0  # seconds
PEERS = ("transformers", "llama-cpp-python")
# Every method with its draft; the first is the reference of the others.
METHODS: tuple[tuple[str, str | None], ...] = (
    ("greedy", None),
    ("auto", None),
    ("lookup", None),
    ("aded", None),
    ("ppd:rows=16", None),
    ("speculative", None),
    ("rsd", None),
    ("rsd:variant=s", None),
    ("spectr", None),
    ("specinfer", None),
    ("speculative", f"self:skip={EARLY}-{LAST_SKIPPED}"),
)


@dataclass(frozen=True)
class SpeculationSettings:
    """How much the suite measures."""

    methods: tuple[tuple[str, str | None], ...]
    """Our methods, each with its draft."""
    peers: tuple[str, ...]
    """Other engines."""
    data: Path
    """The folder of the sets, each a file `SET.jsonl`."""
    sets: tuple[str, ...]
    temperatures: tuple[float, ...]
    threads: int
    count: int
    """Prompts of each set."""
    new: int
    """Tokens of an answer at most."""
    rounds: int
    """Rounds after the warm-up."""
    batch: int
    """Prompts of the batch."""
    beside: tuple[int, int]
    """Prompts and tokens beside other engines, some of which take a second for a few tokens."""

    def tasks(self) -> list[Speculate]:
        """Returns all tasks: every set at every temperature, alone and beside peers; in a batch at temperature 0.

        Each prompt alone is a task, so that participants take turns every few hundred milliseconds.
        """
        pairs = [(name, temperature) for temperature in self.temperatures for name in self.sets]
        threads, count, batch, (few, short) = self.threads, self.count, self.batch, self.beside
        return [
            *(Speculate(*pair, threads, count, 1, self.new, first=place) for pair in pairs for place in range(count)),
            *(Speculate(name, 0.0, threads, batch, batch, self.new, batch) for name in self.sets),
            *(Speculate(*pair, threads, few, few, short, beside=True) for pair in pairs if self.peers),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Returns the settings that results record."""
        names = ("sets", "temperatures", "threads", "count", "new", "rounds", "batch", "beside")
        methods = [name_of(*method) for method in self.methods]
        return {"methods": methods, **{name: getattr(self, name) for name in names}}


class SpeculationSuite(Suite[SpeculationSettings]):
    """Every method answers every prompt in turn; peers answer a few of them."""

    packages = ("outlay", "torch", *PEERS)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        shown = "(%(default)s)"
        parser.add_argument("--methods", default=None, metavar="A,B", help="some of the methods, by their names")
        parser.add_argument("--peers", default=",".join(PEERS), metavar="A,B", help=f"other engines, or none {shown}")
        parser.add_argument("--sets", default=",".join(SETS), metavar="A,B", help=f"sets of prompts {shown}")
        parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="where the sets are, as SET.jsonl")
        parser.add_argument("--temperatures", default="0,0.6", metavar="T,T", help=shown)
        parser.add_argument("--threads", type=int, default=2, metavar="N", help=shown)
        parser.add_argument("--prompts", type=int, default=8, metavar="N", help=f"of each set {shown}")
        parser.add_argument("--new", type=int, default=96, metavar="N", help=f"tokens of an answer {shown}")
        parser.add_argument("--rounds", type=int, default=2, metavar="N", help=f"after the warm-up {shown}")
        parser.add_argument(
            "--beside", default="2x24", metavar="NxT", help=f"prompts and tokens beside other engines {shown}"
        )
        parser.add_argument("--batch", type=int, default=16, metavar="N", help=f"prompts of the batch {shown}")

    def settings(self, args: argparse.Namespace) -> SpeculationSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        known = tuple(dict.fromkeys(method for method, _ in METHODS))
        chosen = known if args.methods is None else ("greedy", *names("method", args.methods, known))
        refuse_below_one(args, "threads", "prompts", "new", "rounds", "batch")
        settings = SpeculationSettings(
            methods=tuple(pair for pair in METHODS if pair[0] in chosen),
            peers=() if args.peers == "none" else names("peer", args.peers, PEERS),
            data=args.data,
            sets=tuple(part.strip() for part in args.sets.split(",") if part.strip()),
            temperatures=_temperatures(args.temperatures),
            threads=args.threads,
            count=args.prompts,
            new=args.new,
            rounds=args.rounds,
            batch=args.batch,
            beside=_beside(args.beside),
        )
        for name in settings.sets:
            if not (args.data / f"{name}.jsonl").is_file():
                raise UsageError(f"there is no set {args.data / name}.jsonl; name its folder with --data DIR")
        return settings

    def measure(self, settings: SpeculationSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns everything that was measured."""
        everyone = participants(settings, model)
        measured = interleave(everyone, settings.tasks(), settings.rounds, task_limit=TASK_LIMIT, progress=progress)
        return {
            "settings": settings.as_dict(),
            "contenders": [participant.name for participant in everyone],
            "failures": measured.failures,
            "values": joined(measured),
        }

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)

    def failure(self, found: Mapping[str, Any]) -> str | None:
        """Returns why none of our own methods could be measured, None where one was."""
        ours, failures = found["settings"]["methods"], found["failures"]
        if not all(name in failures for name in ours):
            return None
        return f"none of our own methods could be measured: {failures[ours[0]]}"


def participants(settings: SpeculationSettings, model: Path) -> list[Participant]:
    """Returns who takes part: our methods that the model is deep enough for, and the peers."""
    layers, data = len(load_model(model).decoder.layers), settings.data
    methods = [(method, draft) for method, draft in settings.methods if draft is None or layers > LAST_SKIPPED]
    peers: dict[str, Sequence[Participant]] = {
        "transformers": [
            TransformersAssisted(model, {"prompt_lookup_num_tokens": 10}, "lookup", data),
            TransformersAssisted(model, {"assistant_early_exit": EARLY}, f"assisted by {EARLY} layers", data),
        ],
        "llama-cpp-python": [LlamaSpeculative(model, False, data), LlamaSpeculative(model, True, data)],
    }
    ours = [OurMethod(str(model), method, draft, data) for method, draft in methods]
    return [*ours, *(participant for name in settings.peers for participant in peers[name])]


def joined(measured: Measurements) -> list[dict[str, Any]]:
    """Returns the rates of each participant on each set, an entry a round: None where a prompt has no answer."""
    parts: dict[tuple[str, Speculate], list[list[Values | None]]] = {}
    for (name, task), rounds in measured.values.items():
        if isinstance(task, Speculate):
            parts.setdefault((name, replace(task, first=0)), []).append(rounds)
    return [
        {"contender": name, "prompts": task.prompts, "temperature": task.temperature, "batch": task.batch,
         "beside": task.beside, "rounds": list(map(_round, *rounds))}
        for (name, task), rounds in parts.items()
    ]  # fmt: skip


def _round(*parts: Values | None) -> Values | None:
    answered = [part for part in parts if part is not None]
    return summed(answered) if len(answered) == len(parts) else None


def _temperatures(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--temperatures takes numbers with commas between them, not {text!r}") from None


def _beside(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise UsageError(f"--beside takes PROMPTSxTOKENS like 2x32, not {text!r}")
    return int(found[1]), int(found[2])


SUITE = SpeculationSuite()
