"""`outlay bench accuracy`: measures every weight and cache format of a model beside float32."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from outlay.bench.accuracy.formats import (
    AccuracyTask,
    Continuations,
    Extent,
    Formats,
    LayerErrors,
    Questions,
    TextWindow,
    Variant,
    pvq_of,
)
from outlay.bench.accuracy.questions import ASKED, Answer, compared
from outlay.bench.accuracy.report import report
from outlay.bench.data import NOVEL
from outlay.bench.interleave import ParticipantProcess, Values
from outlay.bench.options import names, refuse_below_one
from outlay.bench.suite import Suite
from outlay.compare import statistics
from outlay.errors import FailureError, UsageError
from outlay.models import hub
from outlay.models.checkpoint import read_json
from outlay.models.linear import native_kernels
from outlay.models.load import DTYPES
from outlay.progress import ShowProgress
from outlay.tree.cache import KV_DTYPES

LOAD_LIMIT, TASK_LIMIT = 600.0, 1800.0  # seconds


@dataclass(frozen=True)
class AccuracySettings:
    """Which formats are measured, on how much of which text."""

    text: Path
    variants: Sequence[Variant]
    extent: Extent
    docs: int = 0
    """Documents of each task of `lm_eval`."""


class AccuracySuite(Suite[AccuracySettings]):
    """Two processes measure the formats, one with our native kernels and one without."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        known = ", ".join(variant.name for variant in variants())
        parser.add_argument("--text", type=Path, default=NOVEL, metavar="FILE", help="a long text (War and Peace)")
        parser.add_argument("--formats", default=None, metavar="A,B", help=f"some of {known}")
        parser.add_argument("--against", default=None, metavar="DIR,...", help="other checkpoints of the same model, "
                            "such as shrunk ones, in float32; formats then only if --formats names them")  # fmt: skip
        parser.add_argument("--activations", default=None, metavar="PVQ", help="beside each of --against, the same "
                            "with the inputs of linear layers coded: pvq:pulses=58,amp_bits=4")  # fmt: skip
        parser.add_argument("--docs", type=int, default=0, metavar="N", help="with --against: documents of each task "
                            "in benchmarks/tasks that lm_eval asks the original and the others (none)")  # fmt: skip
        parser.add_argument("--windows", type=int, default=4, metavar="N", help="how much of the text (%(default)s)")

    def settings(self, args: argparse.Namespace) -> AccuracySettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        known = {variant.name: variant for variant in variants()}
        refuse_below_one(args, "windows")
        if args.docs < 0:
            raise UsageError(f"--docs must be 0 or more, not {args.docs}")
        if args.docs and args.against is None:
            raise UsageError(
                "--docs asks other checkpoints what the original is asked: name them with --against DIR,..."
            )
        others = [] if args.against is None else list(dict.fromkeys(filter(None, args.against.split(","))))
        chosen: tuple[str, ...] = () if others else tuple(known)
        if args.formats is not None:
            chosen = names("format", args.formats, tuple(known))
        if not chosen and (args.formats is not None or not others):
            raise UsageError(f"--formats names none; there are {', '.join(known)}")
        if not args.text.is_file():
            raise UsageError(f"there is no text {args.text}; name one with --text FILE")
        checkpoints = [Variant("float32", native_kernels(), source=str(hub.resolve(other))) for other in others]
        if args.activations is not None:
            if not others:
                raise UsageError("--activations codes the inputs of checkpoints: name them with --against DIR,...")
            pvq_of(args.activations)
            checkpoints += [replace(each, activations=args.activations) for each in checkpoints]
        return AccuracySettings(
            args.text, [*(known[name] for name in chosen), *checkpoints], Extent(args.windows), args.docs
        )

    def measure(self, settings: AccuracySettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns the `extent` that the text allowed, a row for each variant, and `failures` for those without one."""
        found: dict[str, Any] = {
            "text": settings.text.name, "extent": asdict(settings.extent), "rows": [], "failures": {}
        }  # fmt: skip
        for kernels in (True, False):
            group = [variant for variant in settings.variants if variant.kernels is kernels]
            if not group:
                continue
            try:
                participant = Formats(str(model), settings.text, group, settings.extent)
                facts, values = _measured(participant, settings.docs, progress)
            except FailureError as error:
                found["failures"] |= {variant.name: str(error) for variant in group}
                continue
            found["extent"] |= {"windows": facts["windows"], "window": facts["window"]}
            if settings.docs:
                found["questions"] = [*found.get("questions", []), *_questions(group, values)]
            found["rows"] += [row(variant, facts["held"][variant.name], values) for variant in group]
        return found

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)

    def failure(self, found: Mapping[str, Any]) -> str | None:
        """Returns why no format could be measured, None where one was."""
        if found["rows"]:
            return None
        return f"no format could be measured: {next(iter(found['failures'].values()))}"


def variants() -> list[Variant]:
    """Returns every format of weights, with our kernels and in torch, and the first with every format of the cache.

    float32 is the reference; float16 has no kernels.
    """
    formats = [dtype for dtype in DTYPES if dtype != "float32"]
    own = [Variant(dtype) for dtype in formats if dtype != "float16"] if native_kernels() else []
    torch = [Variant(dtype, kernels=False) for dtype in formats]
    caches = [Variant((own or torch)[0].dtype, bool(own), kv) for kv in KV_DTYPES]
    return own + caches + torch


def _questions(group: Sequence[Variant], values: Mapping[AccuracyTask, Values]) -> list[dict[str, Any]]:
    """Returns what is reported of each task of `lm_eval`."""
    rows = []
    for name in ASKED:
        found = {
            task.variant: given for task, given in values.items() if isinstance(task, Questions) and task.name == name
        }
        count = range(len(next(iter(found.values()))) // 3)
        original = [Answer(*(found[group[0]][f"{what} {i}"] for what in ("original", "chance"))) for i in count]
        others = {
            variant.name: [Answer(given[f"right {i}"], original[i].chance) for i in count]
            for variant, given in found.items()
        }
        rows.append(compared(name, original, others))
    return rows


def _measured(
    participant: Formats, docs: int, progress: ShowProgress
) -> tuple[dict[str, Any], dict[AccuracyTask, Values]]:
    """Runs all tasks of one group of formats; returns what it loaded and what each task gave."""
    with ParticipantProcess(participant) as process:
        progress(f"loading {participant.name}", 0, 1)
        facts = process.receive(LOAD_LIMIT)
        tasks = _tasks(participant.variants, facts["windows"], docs)
        values = {}
        for index, task in enumerate(tasks):
            progress(participant.name, index, len(tasks))
            values[task] = process.ask(task, TASK_LIMIT)[0]
    return facts, values


def _tasks(group: Sequence[Variant], windows: int, docs: int = 0) -> list[AccuracyTask]:
    """The tasks in an order in which the reference computes each window once."""
    tasks: list[AccuracyTask] = [LayerErrors(variant) for variant in group]
    tasks += [TextWindow(variant, index) for index in range(windows) for variant in group]
    tasks += [Continuations(variant) for variant in group]
    return tasks + [Questions(variant, name, docs) for name in ASKED if docs for variant in group]


def row(variant: Variant, held: str, values: Mapping[AccuracyTask, Values]) -> dict[str, Any]:
    """Returns what is reported of a variant.

    `cost` is the perplexity over the reference's, less 1, and `cost_error` its standard error, from the differences
    token by token, which are far smaller than the spread of the tokens themselves. `ratio` is the perplexity over the
    reference's with the 95 % interval of a bootstrap over blocks of 256 tokens, since neighbours are not independent.

    Args:
        variant: the format of weights and cache.
        held: how the weights are held, as the model names it.
        values: what every task gave, other variants' included.
    """
    sums: Counter[str] = Counter()
    for task, measured in values.items():
        if isinstance(task, TextWindow) and task.variant == variant:
            sums.update({name: value for name, value in measured.items() if not name.startswith("block ")})
    tokens = sums["tokens"]
    change = (sums["nll"] - sums["reference_nll"]) / tokens
    layers = values[LayerErrors(variant)]
    changes = _changes(variant, values)
    ratio = [math.exp(bound) for bound in statistics.mean(changes)] if changes else None
    return {
        "name": variant.name,
        "held": held,
        "cache": variant.kv,
        "tokens": int(tokens),
        "reference_perplexity": math.exp(sums["reference_nll"] / tokens),
        "perplexity": math.exp(sums["nll"] / tokens),
        "cost": math.expm1(change),
        "ratio": ratio,
        "bits": _bits(variant),
        "cost_error": math.sqrt(max(sums["squares"] / tokens - change**2, 0.0) / tokens),
        "kl": sums["kl"] / tokens,
        "agreement": sums["agreed"] / tokens,
        **values[Continuations(variant)],
        "layers": layers,
        "layer_mean": mean(layers.values()),
        "layer_worst": max(layers, key=lambda name: layers[name]),
    }


def _changes(variant: Variant, values: Mapping[AccuracyTask, Values]) -> list[float]:
    """Returns the changes of a variant's negative log-likelihood over blocks of tokens, nats a token."""
    return [
        change
        for task, measured in values.items()
        if isinstance(task, TextWindow) and task.variant == variant
        for name, change in measured.items()
        if name.startswith("block ")
    ]


def _bits(variant: Variant) -> float | None:
    """Returns the bits a weight that a shrunk checkpoint reports of its matrices; None for what doesn't."""
    bits = read_json(Path(variant.source) / "report.json").get("bits") if variant.source is not None else None
    return None if bits is None else float(bits)


SUITE = AccuracySuite()
