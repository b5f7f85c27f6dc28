"""`outlay bench speed`: tokens a second and the cost of a pass, beside other engines, measured in turn in one run."""

from __future__ import annotations

import argparse
import json
import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from outlay.bench.busy import busy_cores
from outlay.bench.contenders.llamacpp import LlamaCpp
from outlay.bench.contenders.memory import Memory
from outlay.bench.contenders.openvino import OpenVino
from outlay.bench.contenders.ours import WITHOUT_KERNELS, Ours
from outlay.bench.contenders.transformers import Transformers
from outlay.bench.interleave import Contender, interleave
from outlay.bench.machine import describe
from outlay.bench.options import check_folder_of, names
from outlay.bench.progress import Progress
from outlay.bench.speed_report import report
from outlay.bench.speed_result import as_dict
from outlay.bench.speed_settings import Settings
from outlay.bench.tasks import Decode
from outlay.errors import FailureError, UsageError
from outlay.lm import DEFAULT_MODEL
from outlay.models import hub
from outlay.models.linear import fast_bfloat16
from outlay.models.load import DTYPES

PEERS = ("transformers", "openvino-genai", "llama-cpp-python")
VERSIONS = ("outlay", "torch", "numpy", *PEERS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the suite's options to `parser`."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help="alias, folder, .gguf file or hub id (%(default)s)")
    parser.add_argument("--formats", default=None, metavar="A,B", help=f"weight formats: {', '.join(_formats())}")
    parser.add_argument("--peers", default=",".join(PEERS), metavar="A,B", help="other engines, or none (%(default)s)")
    parser.add_argument("--threads", default="1,2", metavar="N,N", help="numbers of threads (%(default)s)")
    parser.add_argument("--rounds", type=int, default=None, metavar="N", help="rounds after the warm-up (3, quick 2)")
    parser.add_argument("--busy", action="store_true", help="also with a core kept busy by another program")
    parser.add_argument("--quick", action="store_true", help="two minutes: fewer formats, batches and tokens")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write everything measured as JSON")


def run(args: argparse.Namespace) -> int:
    """Measures, prints the report, and writes it; returns the exit status."""
    settings = settings_of(args)
    check_folder_of(args.out)
    path = hub.resolve(args.model)
    started = time.perf_counter()
    tasks = settings.tasks()
    outcome = interleave(
        contenders(settings, str(path), path), tasks, settings.rounds, around=_around, progress=Progress()
    )
    machine = describe(VERSIONS) | {"seconds": round(time.perf_counter() - started, 1), "model": path.name}
    found = as_dict(settings, outcome, machine)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(report(found))
    ours = [f"outlay {format}" for format in settings.formats]
    if all(name in outcome.failures for name in ours):
        raise FailureError(f"none of our own formats could be measured: {outcome.failures[ours[0]]}")
    return 0


def contenders(settings: Settings, source: str, path: Path) -> list[Contender]:
    """Returns who takes part: memory, ourselves, and the peers."""
    most = max(settings.new)
    wide = (
        ["float32"] if settings.brief and not fast_bfloat16() else ["bfloat16", "float32"]
    )  # the slower takes a minute
    peers: dict[str, list[Contender]] = {
        "transformers": [
            Transformers(path, dtype, (1, most) if dtype in wide else (1,)) for dtype in ("bfloat16", "float32")
        ],
        "openvino-genai": [OpenVino(path, settings.threads)],
        "llama-cpp-python": [LlamaCpp(path, most, settings.prompt + max(settings.new.values()))],
    }
    ours = [Ours(source, format) for format in settings.formats]
    return [Memory(), *ours, *(contender for name in settings.peers for contender in peers[name])]


def settings_of(args: argparse.Namespace) -> Settings:
    """Returns what the options ask for. Raises `UsageError` for names and numbers that can't be used."""
    quick_formats = ("auto", "bfloat16")
    formats = names("format", args.formats, _formats()) if args.formats is not None else ()
    if not formats:
        formats = quick_formats if args.quick else ("auto", "int8", "bfloat16", "float32", "auto" + WITHOUT_KERNELS)
    threads = _threads(args.threads)
    rounds = args.rounds if args.rounds is not None else 2 if args.quick else 3
    if rounds < 1:
        raise UsageError(f"--rounds must be 1 or more, not {rounds}")
    return Settings(
        formats=formats,
        peers=() if args.peers == "none" else names("peer", args.peers, PEERS),
        threads=threads,
        rounds=rounds,
        prompt=16 if args.quick else 32,
        new={1: 24, 16: 8} if args.quick else {1: 48, 4: 24, 16: 16},
        busy=args.busy,
        brief=args.quick,
    )


def _formats() -> tuple[str, ...]:
    return (*DTYPES, *(format + WITHOUT_KERNELS for format in DTYPES))


def _threads(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--threads takes numbers from 1 on with commas between them, not {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def _around(task: Any) -> AbstractContextManager[None]:
    """Where the task asks for it, keeps so many cores busy that its threads cannot all have one to themselves."""
    if not (isinstance(task, Decode) and task.busy):
        return nullcontext()
    return busy_cores(max(1, (os.cpu_count() or 1) - task.threads + 1))
