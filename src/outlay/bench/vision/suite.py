"""`outlay bench vision`: VASparse and its parts beside greedy on scenes whose prior is reversed, and their speed.

Every method captions the same scenes. The interval of a ratio of CHAIR_i resamples scenes, with all methods' captions
of a scene together. Speed is that of decoding one long text, all contenders in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from outlay.bench.captions import captions_of, chair_ratio, recall_difference
from outlay.bench.options import refuse_below_one
from outlay.bench.suite import Suite
from outlay.bench.vision.report import report
from outlay.engine.engine import Engine
from outlay.engine.passes import LayeredPass
from outlay.lm import LM, load
from outlay.metrics import CaptionCounts, Chair, caption_counts
from outlay.problems.glyphs import QUESTION, WORDS, GlyphWorld, Kind, Scene
from outlay.progress import ShowProgress

GREEDY = "greedy"
KEPT, CHOICES = (0.9, 0.5, 0.25), ("visual", "attention", "merge_oldest")
METHODS = {
    GREEDY: GREEDY,
    "vasparse": "vasparse",
    "vasparse, alpha 1": "vasparse:alpha=1",
    "contrast alone": "vasparse:keep=1,gamma=0",
    "contrast alone, alpha 1": "vasparse:alpha=1,keep=1,gamma=0",
    "calibration alone": "vasparse:alpha=0,keep=1",
    "exit after 2 layers": "vasparse:contrast=exit:2",
    "exit after 2 layers, alpha 1": "vasparse:alpha=1,contrast=exit:2",
    "full (VCD)": "vasparse:contrast=full",
    "full (VCD), alpha 1": "vasparse:alpha=1,contrast=full",
} | {
    f"keep {keep}, {prune}": f"vasparse:alpha=0,keep={keep},window=1,gamma=0,prune={prune}"
    for keep in KEPT
    for prune in CHOICES
}
"""The contenders by what the report calls them."""
LONG = 64  # tokens of the text that speed is measured on


@dataclass(frozen=True)
class VisionSettings:
    """How much is captioned."""

    kind: Kind
    reversed: bool
    seeds: int
    scenes: int
    rounds: int
    threads: int
    methods: tuple[str, ...] = ()
    """Beside greedy, in place of all of `METHODS`."""

    @property
    def contenders(self) -> dict[str, str]:
        """Methods by what the report calls them, greedy first."""
        names = {method: name for name, method in METHODS.items()}
        return {names.get(method, method): method for method in (GREEDY, *self.methods)} if self.methods else METHODS


class VisionSuite(Suite[VisionSettings]):
    """CHAIR, recall and speed of methods on the glyph world."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options, with a model that sees by default."""
        super().add_arguments(parser)
        parser.set_defaults(model="outlay/glyphs")

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        parser.add_argument("--glyphs", choices=tuple(WORDS), default="digits", help="(%(default)s)")
        parser.add_argument("--prior", choices=("reversed", "training"), default="reversed", help="(%(default)s)")
        parser.add_argument("--seeds", type=int, default=1, metavar="N",
                            help="of scenes (%(default)s; 3 for the whole measurement)")  # fmt: skip
        parser.add_argument("--scenes", type=int, default=100, metavar="N",
                            help="of each seed (%(default)s; 2000 for the whole measurement)")  # fmt: skip
        parser.add_argument("--methods", nargs="+", default=(), metavar="M",
                            help="beside greedy (VASparse, its parts and its peers)")  # fmt: skip
        parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of the speeds (%(default)s)")
        parser.add_argument("--threads", type=int, default=1, metavar="N", help="(%(default)s)")

    def settings(self, args: argparse.Namespace) -> VisionSettings:
        """Returns what the options ask for."""
        refuse_below_one(args, "seeds", "scenes", "rounds", "threads")
        return VisionSettings(
            args.glyphs, args.prior == "reversed", args.seeds, args.scenes, args.rounds, args.threads,
            tuple(args.methods),
        )  # fmt: skip

    def measure(self, settings: VisionSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns CHAIR and recall of each method with its ratio to greedy, and the speeds."""
        lm = load(str(model), threads=settings.threads)
        world = GlyphWorld(settings.kind, reversed=settings.reversed)
        scenes = [scene for seed in range(settings.seeds) for scene in world.scenes(settings.scenes, seed)]
        counted: dict[str, list[CaptionCounts]] = {}
        rows, contenders = [], settings.contenders
        for place, (name, method) in enumerate(contenders.items()):
            progress(f"captions by {name}", place, len(contenders))
            captions, results = captions_of(lm, scenes, method)
            passes = sum(result.ledger.target_passes for result in results)
            passes_a_token = passes / sum(len(result.tokens) for result in results)
            found = caption_counts(captions, [scene.objects for scene in scenes], WORDS[settings.kind])
            counted[name] = found
            chair = Chair.of(found)
            exact = sum(caption == scene.caption for caption, scene in zip(captions, scenes, strict=True))
            rows.append(
                {
                    "name": name, "method": method, "exact": exact / len(scenes), "chair_i": chair.chair_i,
                    "chair_s": chair.chair_s,
                    "recall": chair.recall, "passes": passes_a_token,
                    "over_greedy": chair_ratio(counted[GREEDY], found),
                    "recall_over_greedy": recall_difference(counted[GREEDY], found),
                }
            )  # fmt: skip
        between = [
            {"keep": keep, "ratio": chair_ratio(counted[f"keep {keep}, visual"], counted[f"keep {keep}, attention"])}
            for keep in KEPT
            if {f"keep {keep}, visual", f"keep {keep}, attention"} <= counted.keys()
        ]
        progress("speeds", len(contenders), len(contenders))
        speeds = measured_speeds(lm, scenes[0], settings.rounds)
        settled = {"glyphs": settings.kind, "reversed": settings.reversed, "seeds": settings.seeds,
                   "methods": list(settings.methods)}  # fmt: skip
        return {**settled, "scenes": settings.scenes, "rows": rows, "attention_over_visual": between, "speeds": speeds}

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)


def measured_speeds(lm: LM, scene: Scene, rounds: int) -> dict[str, Any]:
    """Returns tokens a second of decoding, and ratios within a round, of methods that take turns."""
    decoder = lm.model.decoder
    layered = LM(replace(lm.model, make_pass=lambda cache: LayeredPass(decoder, cache)), Engine())
    contenders = {
        "greedy, in one native call": (lm, GREEDY),
        "greedy, layer by layer": (layered, GREEDY),
        "vasparse": (lm, "vasparse"),
        "vasparse:contrast=full": (lm, "vasparse:contrast=full"),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, (which, method) in contenders.items():
            rate = _rate(which, scene, method)
            if turn:  # the first one warms up
                rates[name].append(rate)
    layered.engine.close()
    pairs = {
        "vasparse over greedy on the same kind of pass": ("vasparse", "greedy, layer by layer"),
        "vasparse over full": ("vasparse", "vasparse:contrast=full"),
    }
    return {
        "tokens_per_second": {name: median(found) for name, found in rates.items()},
        "ratios": {name: _spread(rates[one], rates[other]) for name, (one, other) in pairs.items()},
    }


def _rate(lm: LM, scene: Scene, method: str) -> float:
    """Returns tokens a second of decoding behind the first token, by processor time."""

    def seconds(tokens: int) -> float:
        started = time.process_time()
        lm.generate(QUESTION, images=[scene.image], method=method, max_tokens=tokens, ignore_eos=True)
        return time.process_time() - started

    return LONG / max(1e-9, seconds(LONG + 1) - seconds(1))


def _spread(ones: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    ratios = [one / other for one, other in zip(ones, others, strict=True)]
    return {"value": median(ratios), "low": min(ratios), "high": max(ratios)}


SUITE = VisionSuite()
