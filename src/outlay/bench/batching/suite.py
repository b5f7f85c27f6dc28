"""`outlay bench batching`: samplers on one corpus of lengths, with batch sizes by one memory model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay.batching import (
    BatchDuration,
    Buckets,
    DynamicBucketSampler,
    MemoryFits,
    MemoryModel,
    OomSearch,
    padding_report,
    transformer_memory,
)
from outlay.batching.memory import memory_size
from outlay.batching.sampler import BUFFER
from outlay.bench.batching.corpus import speech_lengths
from outlay.bench.batching.lhotse import LhotseBatches, version
from outlay.bench.batching.report import report
from outlay.bench.options import refuse_below_one
from outlay.bench.suite import Suite
from outlay.progress import ShowProgress

RECIPE = BatchDuration(360.0, 15.0)  # of the original Canary training, in 20 buckets, on devices of 80 GiB
FRAMES = 12.5  # encoder places a second
CANARY: dict[str, Any] = {"encoder": 24, "decoder": 24, "hidden": 1024, "heads": 8, "vocab": 16384, "kind": "conformer"}


@dataclass(frozen=True)
class BatchingSettings:
    """What is measured."""

    examples: int
    seed: int
    memory: float
    """Bytes of the device."""
    share: float
    """Share of them that a step may take."""
    lhotse: bool
    """Whether lhotse's sampler is measured beside ours."""


class BatchingSuite(Suite[BatchingSettings]):
    """Naive batches, the recipe by total duration, and buckets of one and two dimensions with batch sizes that fit."""

    packages = ("outlay", "torch", "lhotse")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the suite's options; no model is loaded."""
        self.add_options(parser)
        parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write everything measured as JSON")

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        parser.add_argument("--examples", type=int, default=60_000, metavar="N", help="of the corpus (%(default)s)")
        parser.add_argument(
            "--seed", type=int, default=0, metavar="N", help="of the corpus and the draws (%(default)s)"
        )
        parser.add_argument("--memory", type=memory_size, default=80 * 2**30, metavar="M", help="of the device (80GiB)")
        parser.add_argument("--share", type=float, default=0.9, metavar="P", help="that steps may take (%(default)s)")
        parser.add_argument("--no-lhotse", action="store_true", help="ours only")

    def settings(self, args: argparse.Namespace) -> BatchingSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        refuse_below_one(args, "examples")
        return BatchingSettings(args.examples, args.seed, args.memory, args.share, not args.no_lhotse)

    def path(self, args: argparse.Namespace) -> Path:
        """Returns what the results are named by: the corpus of lengths."""
        return Path("made-up lengths of speech")

    def measure(self, settings: BatchingSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns a row for each sampler and limit of memory."""
        inputs, outputs = speech_lengths(settings.examples, settings.seed)
        lengths = list(zip(inputs.tolist(), outputs.tolist(), strict=True))
        memory = transformer_memory(**CANARY, per_input=FRAMES)
        corpus = _Corpus(lengths, inputs.tolist(), outputs.tolist(), memory, settings.seed)
        progress("ours", 0, 2)

        rows = [
            corpus.row("random, 32 examples", corpus.batches(Buckets.fit_1d(inputs, 1, outputs), {0: 32})),
            corpus.row("random, 360 s", corpus.batches(Buckets.fit_1d(inputs, 1, outputs), BatchDuration(360.0))),
        ]
        recipe = corpus.row("1-D 20, 360 s, quadratic 15", corpus.batches(Buckets.fit_1d(inputs, 20, outputs), RECIPE))
        rows.append(recipe)
        fits = {
            "device": MemoryFits(memory, settings.memory, settings.share),
            "recipe": MemoryFits(memory, recipe["peak_bytes"], 1.0),
        }
        shapes = {
            "1-D 30": Buckets.fit_1d(inputs, 30, outputs),
            "2-D 30x2": Buckets.fit_2d(inputs, outputs, 30, 2),
            "2-D 30x5": Buckets.fit_2d(inputs, outputs, 30, 5),
        }
        sizes = {
            (limit, name): OomSearch(each).profile(shapes[name]) for limit, each in fits.items() for name in shapes
        }
        for (limit, name), found in sizes.items():
            rows.append(corpus.row(name, corpus.batches(shapes[name], found), limit))

        progress("lhotse", 1, 2)
        if settings.lhotse:
            peer = LhotseBatches(lengths, settings.seed)
            rows.append(corpus.row("lhotse 1-D 20, 360 s, quadratic 15", peer.by_duration(20, RECIPE)))
            for limit in fits:
                batches = peer.by_sizes(shapes["1-D 30"], sizes[limit, "1-D 30"])
                rows.append(corpus.row("lhotse 1-D 30", batches, limit))
        return {
            "settings": asdict(settings), "memory": memory.as_json(), "recipe_bytes": recipe["peak_bytes"],
            "lhotse": version() if settings.lhotse else None, "rows": rows,
        }  # fmt: skip

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)


@dataclass(frozen=True)
class _Corpus:
    """The lengths, and what their batches are measured by."""

    lengths: Sequence[tuple[float, float]]
    inputs: Sequence[float]
    outputs: Sequence[float]
    memory: MemoryModel
    seed: int

    def batches(self, buckets: Buckets, sizes: Any) -> list[list[int]]:
        """Returns the batches of an epoch; naive ones have a single bucket and are drawn from all examples."""
        buffer = len(self.lengths) if len(buckets) == 1 else BUFFER
        return list(DynamicBucketSampler(self.lengths, buckets, sizes, seed=self.seed, buffer=buffer))

    def row(self, name: str, batches: Sequence[Sequence[int]], limit: str | None = None) -> dict[str, Any]:
        """Returns the padding of batches and the greatest memory of a step."""
        peak = max(
            self.memory.bytes(len(batch), max(self.inputs[i] for i in batch), max(self.outputs[i] for i in batch))
            for batch in batches
        )
        found = padding_report(batches, self.inputs, self.outputs)
        return {"name": name, "limit": limit, "peak_bytes": float(peak), **found.as_json()}


SUITE = BatchingSuite()
