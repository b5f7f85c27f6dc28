"""`outlay bench accuracy`: measures every weight and cache format of a model beside float32."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from outlay.bench.accuracy.formats import (
    AccuracyTask,
    Continuations,
    Extent,
    Formats,
    LayerErrors,
    TextWindow,
    Variant,
)
from outlay.bench.accuracy.report import report
from outlay.bench.data import NOVEL
from outlay.bench.interleave import ParticipantProcess, Values
from outlay.bench.options import names, refuse_below_one
from outlay.bench.suite import Suite
from outlay.errors import FailureError, UsageError
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


class AccuracySuite(Suite[AccuracySettings]):
    """Two processes measure the formats, one with our native kernels and one without."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        known = ", ".join(variant.name for variant in variants())
        parser.add_argument("--text", type=Path, default=NOVEL, metavar="FILE", help="a long text (War and Peace)")
        parser.add_argument("--formats", default=None, metavar="A,B", help=f"some of {known}")
        parser.add_argument("--windows", type=int, default=4, metavar="N", help="how much of the text (%(default)s)")

    def settings(self, args: argparse.Namespace) -> AccuracySettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        known = {variant.name: variant for variant in variants()}
        refuse_below_one(args, "windows")
        chosen = names("format", args.formats, tuple(known)) if args.formats is not None else tuple(known)
        if not chosen:
            raise UsageError(f"--formats names none; there are {', '.join(known)}")
        if not args.text.is_file():
            raise UsageError(f"there is no text {args.text}; name one with --text FILE")
        return AccuracySettings(args.text, [known[name] for name in chosen], Extent(args.windows))

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
                facts, values = _measured(Formats(str(model), settings.text, group, settings.extent), progress)
            except FailureError as error:
                found["failures"] |= {variant.name: str(error) for variant in group}
                continue
            found["extent"] |= {"windows": facts["windows"], "window": facts["window"]}
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


def _measured(participant: Formats, progress: ShowProgress) -> tuple[dict[str, Any], dict[AccuracyTask, Values]]:
    """Runs all tasks of one group of formats; returns what it loaded and what each task gave."""
    with ParticipantProcess(participant) as process:
        progress(f"loading {participant.name}", 0, 1)
        facts = process.receive(LOAD_LIMIT)
        tasks = _tasks(participant.variants, facts["windows"])
        values = {}
        for index, task in enumerate(tasks):
            progress(participant.name, index, len(tasks))
            values[task] = process.ask(task, TASK_LIMIT)[0]
    return facts, values


def _tasks(group: Sequence[Variant], windows: int) -> list[AccuracyTask]:
    """The tasks in an order in which the reference computes each window once."""
    tasks: list[AccuracyTask] = [LayerErrors(variant) for variant in group]
    tasks += [TextWindow(variant, index) for index in range(windows) for variant in group]
    return tasks + [Continuations(variant) for variant in group]


def row(variant: Variant, held: str, values: Mapping[AccuracyTask, Values]) -> dict[str, Any]:
    """Returns what is reported of a variant.

    `cost` is the perplexity over the reference's, less 1, and `cost_error` its standard error, from the differences
    token by token, which are far smaller than the spread of the tokens themselves.

    Args:
        variant: the format of weights and cache.
        held: how the weights are held, as the model names it.
        values: what every task gave, other variants' included.
    """
    sums: Counter[str] = Counter()
    for task, measured in values.items():
        if isinstance(task, TextWindow) and task.variant == variant:
            sums.update(measured)
    tokens = sums["tokens"]
    change = (sums["nll"] - sums["reference_nll"]) / tokens
    layers = values[LayerErrors(variant)]
    return {
        "name": variant.name,
        "held": held,
        "cache": variant.kv,
        "tokens": int(tokens),
        "reference_perplexity": math.exp(sums["reference_nll"] / tokens),
        "perplexity": math.exp(sums["nll"] / tokens),
        "cost": math.expm1(change),
        "cost_error": math.sqrt(max(sums["squares"] / tokens - change**2, 0.0) / tokens),
        "kl": sums["kl"] / tokens,
        "agreement": sums["agreed"] / tokens,
        **values[Continuations(variant)],
        "layers": layers,
        "layer_mean": mean(layers.values()),
        "layer_worst": max(layers, key=lambda name: layers[name]),
    }


SUITE = AccuracySuite()
