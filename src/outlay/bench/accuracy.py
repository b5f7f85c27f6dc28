"""`outlay bench accuracy`: what each way to hold weights and cache costs, beside the same weights in float32."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from outlay.bench.accuracy_report import report
from outlay.bench.contenders.formats import (
    KV_DTYPES,
    Continuations,
    Extent,
    Formats,
    LayerErrors,
    Task,
    Variant,
    Window,
)
from outlay.bench.interleave import Values, Worker
from outlay.bench.machine import describe
from outlay.bench.options import check_folder_of, names
from outlay.bench.progress import Progress
from outlay.errors import FailureError, UsageError
from outlay.lm import DEFAULT_MODEL
from outlay.models import hub
from outlay.models.linear import native_kernels
from outlay.models.load import DTYPES

TEXT = Path(__file__).parents[3] / "benchmarks" / "data" / "war_and_peace.txt"
LOAD_LIMIT, TASK_LIMIT = 600.0, 1800.0  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the suite's options to `parser`."""
    known = ", ".join(variant.name for variant in variants())
    parser.add_argument("--model", default=DEFAULT_MODEL, help="alias, folder, .gguf file or hub id (%(default)s)")
    parser.add_argument("--text", type=Path, default=TEXT, metavar="FILE", help="a long text, UTF-8 (War and Peace)")
    parser.add_argument("--formats", default=None, metavar="A,B", help=f"some of {known}")
    parser.add_argument("--windows", type=int, default=4, metavar="N", help="how much of the text (%(default)s)")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write everything measured as JSON")


def run(args: argparse.Namespace) -> int:
    """Measures, prints the report, and writes it; returns the exit status."""
    chosen, extent = settings_of(args)
    check_folder_of(args.out)
    if not args.text.is_file():
        raise UsageError(f"there is no text {args.text}; name one with --text FILE")
    path = hub.resolve(args.model)
    started = time.perf_counter()
    found = measure(str(path), args.text, chosen, extent)
    machine = describe(("outlay", "torch")) | {"seconds": round(time.perf_counter() - started, 1), "model": path.name}
    found = {"machine": machine, "text": args.text.name, **found}
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    if not found["rows"]:
        raise FailureError(f"no format could be measured: {next(iter(found['failures'].values()))}")
    print(report(found))
    return 0


def settings_of(args: argparse.Namespace) -> tuple[list[Variant], Extent]:
    """Returns what the options ask for. Raises `UsageError` for names and numbers that can't be used."""
    known = {variant.name: variant for variant in variants()}
    if args.windows < 1:
        raise UsageError(f"--windows must be 1 or more, not {args.windows}")
    chosen = names("format", args.formats, tuple(known)) if args.formats is not None else tuple(known)
    if not chosen:
        raise UsageError(f"--formats names none; there are {', '.join(known)}")
    return [known[name] for name in chosen], Extent(args.windows)


def variants() -> list[Variant]:
    """Returns every format of weights, with our kernels and in torch, and the first with every format of the cache.

    float32 is the reference; float16 has no kernels.
    """
    held = [dtype for dtype in DTYPES if dtype != "float32"]
    own = [Variant(dtype) for dtype in held if dtype != "float16"] if native_kernels() else []
    torch = [Variant(dtype, kernels=False) for dtype in held]
    caches = [Variant((own or torch)[0].dtype, bool(own), kv) for kv in KV_DTYPES]
    return own + caches + torch


def measure(source: str, text: Path, chosen: Sequence[Variant], extent: Extent) -> dict[str, Any]:
    """Measures variants of the model at `source` in two processes, one with our kernels and one without.

    Returns the `extent` that the text allowed, a row for each variant, and in `failures` why others have none.
    """
    progress = Progress()
    found: dict[str, Any] = {"extent": asdict(extent), "rows": [], "failures": {}}
    for group in ([one for one in chosen if one.kernels], [one for one in chosen if not one.kernels]):
        if not group:
            continue
        contender = Formats(source, text, group, extent)
        try:
            with Worker(contender) as worker:
                progress(f"loading {contender.name}", 0, 1)
                facts = worker.receive(LOAD_LIMIT)
                tasks = _tasks(group, facts["windows"])
                values = {}
                for index, task in enumerate(tasks):
                    progress(contender.name, index, len(tasks))
                    values[task] = worker.ask(task, TASK_LIMIT)[0]
        except FailureError as error:
            found["failures"] |= {variant.name: str(error) for variant in group}
            continue
        found["extent"] |= {"windows": facts["windows"], "window": facts["window"]}
        found["rows"] += [row(one, facts["held"][one.name], values) for one in group]
    return found


def _tasks(group: Sequence[Variant], windows: int) -> list[Task]:
    """The tasks in an order in which the reference computes each window once."""
    tasks: list[Task] = [LayerErrors(variant) for variant in group]
    tasks += [Window(variant, index) for index in range(windows) for variant in group]
    return tasks + [Continuations(variant) for variant in group]


def row(variant: Variant, held: str, values: dict[Task, Values]) -> dict[str, Any]:
    """Returns what is reported of a variant.

    `cost` is the perplexity over the reference's, less 1, and `cost_error` its standard error, from the differences
    token by token, which are far smaller than the spread of the tokens themselves.
    """
    sums: Counter[str] = Counter()
    for task, measured in values.items():
        if isinstance(task, Window) and task.variant == variant:
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
