"""`outlay bench speculation`: what drafting gains on chat, code and summaries, beside plain decoding and peers."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from outlay.bench.contenders.speculators import LlamaSpeculative, OurMethod, Speculate, TransformersAssisted, summed
from outlay.bench.interleave import Contender, Outcome, Values, interleave
from outlay.bench.machine import describe
from outlay.bench.options import check_folder_of, names
from outlay.bench.progress import Progress
from outlay.bench.speculation_report import report
from outlay.errors import FailureError, UsageError
from outlay.lm import DEFAULT_MODEL
from outlay.models import hub
from outlay.models.load import load_model

SETS = ("chat", "code", "summary")
PEERS = ("transformers", "llama-cpp-python")
DATA = Path(__file__).parents[3] / "benchmarks" / "data"
VERSIONS = ("outlay", "torch", *PEERS)
# Every method with the draft that it is measured with; the first is what the others are measured against.
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
    ("speculative", "self:skip=10-29"),
)
EARLY = 10  # layers of the target that draft for transformers, as for ours with self:skip=10-29


@dataclass(frozen=True)
class Settings:
    """How much the suite measures."""

    methods: tuple[tuple[str, str | None], ...]
    peers: tuple[str, ...]
    sets: tuple[str, ...]
    temperatures: tuple[float, ...]
    threads: int
    count: int
    new: int
    rounds: int
    batch: int
    beside: tuple[int, int]  # prompts and tokens beside other engines, some of which take a second for a few tokens

    def tasks(self) -> list[Speculate]:
        """Returns all tasks: every set at every temperature, alone and beside peers; in a batch at temperature 0. Each
        prompt alone is a task, so that contenders take turns every few hundred milliseconds.
        """
        pairs = [(name, temperature) for temperature in self.temperatures for name in self.sets]
        threads, count, batch, (few, short) = self.threads, self.count, self.batch, self.beside
        return [
            *(Speculate(*pair, threads, count, 1, self.new, first=place) for pair in pairs for place in range(count)),
            *(Speculate(name, 0.0, threads, batch, batch, self.new, batch) for name in self.sets),
            *(Speculate(*pair, threads, few, few, short, beside=True) for pair in pairs if self.peers),
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the suite's options to `parser`."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help="alias, folder, .gguf file or hub id (%(default)s)")
    parser.add_argument("--methods", default=None, metavar="A,B", help="some of the methods, by their names")
    parser.add_argument("--peers", default=",".join(PEERS), metavar="A,B", help="other engines, or none (%(default)s)")
    parser.add_argument("--sets", default=",".join(SETS), metavar="A,B", help="sets of prompts (%(default)s)")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="where the sets are, as SET.jsonl")
    parser.add_argument("--temperatures", default="0,0.6", metavar="T,T", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="(%(default)s)")
    parser.add_argument("--prompts", type=int, default=8, metavar="N", help="of each set (%(default)s)")
    parser.add_argument("--new", type=int, default=96, metavar="N", help="tokens of an answer (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="after the warm-up (%(default)s)")
    parser.add_argument(
        "--beside", default="2x24", metavar="NxT", help="prompts and tokens beside other engines (%(default)s)"
    )
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="prompts of the batch (%(default)s)")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write everything measured as JSON")


def run(args: argparse.Namespace) -> int:
    """Measures, prints the report, and writes it; returns the exit status."""
    settings = settings_of(args)
    check_folder_of(args.out)
    for name in settings.sets:
        if not (args.data / f"{name}.jsonl").is_file():
            raise UsageError(f"there is no set {args.data / name}.jsonl; name its folder with --data DIR")
    path = hub.resolve(args.model)
    started = time.perf_counter()
    everyone = contenders(settings, str(path), path, args.data)
    outcome = interleave(everyone, settings.tasks(), settings.rounds, task_limit=1800.0, progress=Progress())
    machine = describe(VERSIONS) | {"seconds": round(time.perf_counter() - started, 1), "model": path.name}
    found = {
        "machine": machine,
        "settings": {
            "methods": [name_of(*method) for method in settings.methods], "sets": settings.sets,
            "temperatures": settings.temperatures, "threads": settings.threads, "count": settings.count,
            "new": settings.new, "rounds": settings.rounds, "batch": settings.batch,
            "beside": settings.beside,
        },
        "contenders": [contender.name for contender in everyone],
        "failures": outcome.failures,
        "values": joined(outcome),
    }  # fmt: skip
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(report(found))
    ours = [name_of(*method) for method in settings.methods]
    if all(name in outcome.failures for name in ours):
        raise FailureError(f"none of our own methods could be measured: {outcome.failures[ours[0]]}")
    return 0


def joined(outcome: Outcome) -> list[dict[str, Any]]:
    """Returns what was measured of each contender on each set, a round at a time: None where a prompt has no answer."""
    parts: dict[tuple[str, Speculate], list[list[Values | None]]] = {}
    for (name, task), rounds in outcome.values.items():
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


def name_of(method: str, draft: str | None) -> str:
    """Returns how a method of ours is called in results."""
    return f"outlay {method}" + (f" ({draft})" if draft else "")


def contenders(settings: Settings, source: str, path: Path, data: Path) -> list[Contender]:
    """Returns who takes part."""
    layers = len(load_model(path).decoder.layers)
    methods = [(method, draft) for method, draft in settings.methods if draft is None or layers > 29]
    peers: dict[str, Sequence[Contender]] = {
        "transformers": [
            TransformersAssisted(path, {"prompt_lookup_num_tokens": 10}, "lookup", data),
            TransformersAssisted(path, {"assistant_early_exit": EARLY}, f"assisted by {EARLY} layers", data),
        ],
        "llama-cpp-python": [LlamaSpeculative(path, False, data), LlamaSpeculative(path, True, data)],
    }
    ours = [OurMethod(source, method, draft, data) for method, draft in methods]
    return [*ours, *(contender for name in settings.peers for contender in peers[name])]


def settings_of(args: argparse.Namespace) -> Settings:
    """Returns what the options ask for. Raises `UsageError` for what can't be used."""
    known = tuple(dict.fromkeys(method for method, _ in METHODS))
    chosen = known if args.methods is None else ("greedy", *names("method", args.methods, known))
    try:
        temperatures = tuple(float(part) for part in args.temperatures.split(","))
    except ValueError:
        raise UsageError(f"--temperatures takes numbers with commas between them, not {args.temperatures!r}") from None
    for name in ("threads", "prompts", "new", "rounds", "batch"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} must be 1 or more, not {getattr(args, name)}")
    beside = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", args.beside)
    if beside is None:
        raise UsageError(f"--beside takes PROMPTSxTOKENS like 2x32, not {args.beside!r}")
    return Settings(
        methods=tuple(pair for pair in METHODS if pair[0] in chosen),
        peers=() if args.peers == "none" else names("peer", args.peers, PEERS),
        sets=tuple(part.strip() for part in args.sets.split(",") if part.strip()),
        temperatures=temperatures,
        threads=args.threads,
        count=args.prompts,
        new=args.new,
        rounds=args.rounds,
        batch=args.batch,
        beside=(int(beside[1]), int(beside[2])),
    )
