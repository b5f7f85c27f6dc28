"""`outlay bench speed`: our engine in several formats, other engines, and the machine's memory, in turn."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from outlay.bench.data import NOVEL
from outlay.bench.interleave import Participant, interleave
from outlay.bench.options import WITHOUT_KERNELS, names
from outlay.bench.speed.busy import busy_cores
from outlay.bench.speed.llamacpp import IkLlamaCpp, LlamaCpp
from outlay.bench.speed.memory import MachineLimit
from outlay.bench.speed.openvino import OpenVino
from outlay.bench.speed.ours import Ours
from outlay.bench.speed.report import report
from outlay.bench.speed.result import as_dict
from outlay.bench.speed.settings import SpeedSettings
from outlay.bench.speed.tasks import Decode
from outlay.bench.speed.transformers import Transformers
from outlay.bench.speed.xllamacpp import XLlamaCpp
from outlay.bench.suite import Suite
from outlay.errors import UsageError
from outlay.models.linear import fast_bfloat16
from outlay.models.load import DTYPES, load_model
from outlay.progress import ShowProgress

PEERS = ("transformers", "openvino-genai", "llama-cpp-python", "ik-llama-cpp-python", "xllamacpp")
TEXT = 192  # tokens whose likelihood everyone states
FORMATS = (*DTYPES, *(dtype + WITHOUT_KERNELS for dtype in DTYPES))
MEASURED, QUICK = ("auto", "int8", "bfloat16", "float32", "auto" + WITHOUT_KERNELS), ("auto", "bfloat16")


class SpeedSuite(Suite[SpeedSettings]):
    """Decoding, long prompts and passes of several widths; on each, everyone takes turns."""

    packages = ("outlay", "torch", "numpy", *PEERS)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        parser.add_argument("--formats", default=None, metavar="A,B", help=f"weight formats: {', '.join(FORMATS)}")
        parser.add_argument(
            "--peers", default=",".join(PEERS), metavar="A,B", help="other engines, or none (%(default)s)"
        )
        parser.add_argument("--threads", default="1,2", metavar="N,N", help="numbers of threads (%(default)s)")
        parser.add_argument(
            "--rounds", type=int, default=None, metavar="N", help="rounds after the warm-up (3, quick 2)"
        )
        parser.add_argument("--busy", action="store_true", help="also with a core kept busy by another program")
        parser.add_argument("--quick", action="store_true", help="two minutes: fewer formats, batches and tokens")

    def settings(self, args: argparse.Namespace) -> SpeedSettings:
        """Returns what the options ask for. Raises `UsageError` for names and numbers that can't be used."""
        formats = names("format", args.formats, FORMATS) if args.formats is not None else ()
        threads = _threads(args.threads)
        rounds = args.rounds if args.rounds is not None else 2 if args.quick else 3
        if rounds < 1:
            raise UsageError(f"--rounds must be 1 or more, not {rounds}")
        return SpeedSettings(
            formats=formats or (QUICK if args.quick else MEASURED),
            peers=() if args.peers == "none" else names("peer", args.peers, PEERS),
            threads=threads,
            rounds=rounds,
            prompt=16 if args.quick else 32,
            new={1: 24, 16: 8} if args.quick else {1: 48, 4: 24, 16: 16},
            busy=args.busy,
            brief=args.quick,
        )

    def measure(self, settings: SpeedSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns everything that was measured."""
        tokenizer = load_model(str(model)).tokenizer
        if NOVEL.is_file():
            settings = replace(settings, text=tuple(tokenizer.encode(NOVEL.read_text()[: 16 * TEXT])[:TEXT]))
        everyone = participants(settings, model, tokenizer.vocab_size)
        found = interleave(everyone, settings.tasks(), settings.rounds, around=_around, progress=progress)
        return as_dict(settings, found)

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)

    def failure(self, found: Mapping[str, Any]) -> str | None:
        """Returns why none of our own formats could be measured, None where one was."""
        ours, failures = [f"outlay {dtype}" for dtype in found["settings"]["formats"]], found["failures"]
        if not all(name in failures for name in ours):
            return None
        return f"none of our own formats could be measured: {failures[ours[0]]}"


def participants(settings: SpeedSettings, model: Path, vocab: int) -> list[Participant]:
    """Returns who takes part: the machine's limits, our formats, and the peers. `vocab` is the number of tokens."""
    most, length = max(settings.new), settings.prompt + max(settings.new.values())
    slow_bfloat16 = settings.brief and not fast_bfloat16()  # a large batch would take it a minute
    wide = ["float32"] if slow_bfloat16 else ["bfloat16", "float32"]
    peers: dict[str, list[Participant]] = {
        "transformers": [
            Transformers(model, dtype, (1, most) if dtype in wide else (1,)) for dtype in ("bfloat16", "float32")
        ],
        "openvino-genai": [OpenVino(model, settings.threads)],
        "llama-cpp-python": [LlamaCpp(model, most, length)],
        "ik-llama-cpp-python": [IkLlamaCpp(model, most, length)],
        "xllamacpp": [XLlamaCpp(model, most, length, settings.threads, vocab)],
    }
    ours = [Ours(str(model), dtype) for dtype in settings.formats]
    return [MachineLimit(), *ours, *(participant for name in settings.peers for participant in peers[name])]


def _threads(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--threads takes numbers from 1 on with commas between them, not {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def _around(task: Any) -> AbstractContextManager[None]:
    """Where the task asks for it, keeps enough cores busy that its threads can't all have one to themselves."""
    if not (isinstance(task, Decode) and task.busy):
        return nullcontext()
    return busy_cores(max(1, (os.cpu_count() or 1) - task.threads + 1))


SUITE = SpeedSuite()
