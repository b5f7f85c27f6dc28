"""`outlay bench cache`: what each part of a cache policy costs, and what it saves in bytes.

A model of text reads passages and is measured by perplexity; one that sees captions scenes of the glyph world.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from outlay.bench.cache import glyphs, presses
from outlay.bench.cache.forced import measured
from outlay.bench.cache.glyphs import GlyphSettings
from outlay.bench.cache.parts import ADAPTIVE, PARTS
from outlay.bench.cache.plot import write_plot
from outlay.bench.cache.report import report
from outlay.bench.data import NOVEL
from outlay.bench.options import check_folder_of, refuse_below_one
from outlay.bench.suite import Suite
from outlay.compare import plots
from outlay.engine.engine import Engine
from outlay.errors import OutlayError, UsageError
from outlay.lm import LM
from outlay.models.load import load_model
from outlay.problems.glyphs import WORDS
from outlay.progress import ShowProgress

PEER_SECONDS = 1800


@dataclass(frozen=True)
class CacheSettings:
    """What the suite measures."""

    text: Path
    passages: int
    """Passages, evenly spread over the text."""
    prompt: int
    """Tokens of a passage that are held."""
    scored: int
    """Tokens behind them that are scored."""
    kvpress: str | None
    """The interpreter of an environment with kvpress."""
    glyphs: GlyphSettings = field(default_factory=GlyphSettings)
    """What a model that sees captions, in place of all that."""
    plot: Path | None = None
    """Where the picture of its captions is written."""


class CacheSuite(Suite[CacheSettings]):
    """Every part reads the same passages. The cache holds bfloat16; nothing is timed."""

    packages = ("outlay", "torch")

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        shown = "(%(default)s)"
        parser.add_argument("--text", type=Path, default=NOVEL, metavar="FILE", help=f"where passages are from {shown}")
        parser.add_argument("--passages", type=int, default=4, metavar="N", help=f"passages {shown}")
        parser.add_argument("--prompt", type=int, default=1024, metavar="N", help=f"tokens that are held {shown}")
        parser.add_argument("--scored", type=int, default=128, metavar="N", help=f"tokens behind them {shown}")
        parser.add_argument("--kvpress", metavar="PYTHON", help="the interpreter of an environment with kvpress and a "
                            "transformers before 5.3, beside which it is measured")  # fmt: skip
        sees = parser.add_argument_group("for a model that sees, such as outlay/glyphs, in place of passages")
        sees.add_argument(
            "--glyphs", choices=tuple(WORDS), default=GlyphSettings.kind, help=f"what scenes show {shown}"
        )
        sees.add_argument("--seeds", type=int, default=GlyphSettings.seeds, metavar="N", help=f"of scenes {shown}")
        sees.add_argument("--scenes", type=int, default=GlyphSettings.scenes, metavar="N", help=f"of each seed {shown}")
        sees.add_argument("--plot", type=Path, metavar="FILE", help="draw recall over bytes, and what attends")

    def settings(self, args: argparse.Namespace) -> CacheSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        for name, least in (("passages", 1), ("prompt", 16), ("scored", 2)):
            if getattr(args, name) < least:
                raise UsageError(f"--{name} must be {least} or more, not {getattr(args, name)}")
        if not args.text.is_file():
            raise UsageError(f"there is no text {args.text}")
        refuse_below_one(args, "seeds", "scenes")
        check_folder_of(args.plot)
        if args.plot is not None and not plots.available():
            raise UsageError("--plot needs matplotlib: pip install 'outlay[plots]'")
        captions = GlyphSettings(args.glyphs, args.seeds, args.scenes)
        return CacheSettings(args.text, args.passages, args.prompt, args.scored, args.kvpress, captions, args.plot)

    def measure(self, settings: CacheSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns what was measured of each part on each passage, or of each way on the scenes."""
        loaded = load_model(str(model))
        if settings.plot is not None and loaded.vision is None:
            raise UsageError(f"--plot shows captions, and {loaded.name} sees no images; give --model outlay/glyphs")
        lm = LM(loaded, Engine(kv_dtype=torch.bfloat16, prefix_cache=False))
        if loaded.vision is not None:
            found = {"settings": asdict(settings.glyphs), **glyphs.measured(lm, settings.glyphs, progress)}
            lm.engine.close()
            if settings.plot is not None:
                write_plot(found, settings.plot)
            return found
        return self._read(lm, settings, model, progress)

    def _read(self, lm: LM, settings: CacheSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns what was measured of each part on each passage."""
        texts = passages(lm, settings)
        found: dict[str, list[dict[str, Any]]] = {}
        failures: dict[str, str] = {}
        share = 1.0
        for number, part in enumerate(PARTS):
            progress(part.name, number, len(PARTS))
            cache = None if part.cache is None else part.cache.format(ratio=round(share, 4))
            try:
                found[part.name] = [measured(lm, text, settings.prompt, cache) for text in texts]
            except OutlayError as error:
                failures[part.name] = str(error)
                continue
            if part.name == ADAPTIVE:
                kept = [mean for each in found[part.name] for mean in each["kept"]]
                share = math.fsum(kept) / len(kept)
        lm.engine.close()
        result: dict[str, Any] = {
            "settings": {
                "text": settings.text.name,
                "passages": settings.passages,
                "prompt": settings.prompt,
                "scored": settings.scored,
                "kvpress": settings.kvpress is not None,
            },
            "parts": found,
            "failures": failures,
            "share": share,
        }
        if settings.kvpress is not None:
            progress("kvpress", 0, 1)
            result["kvpress"] = beside(settings, str(model), texts, share, failures)
        return result

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)

    def failure(self, found: Mapping[str, Any]) -> str | None:
        """Returns why the plain cache could not be measured, None where it was."""
        reason: str | None = found.get("failures", {}).get("dense")
        return reason


def passages(lm: LM, settings: CacheSettings) -> list[list[int]]:
    """Returns the passages as token ids. Raises `UsageError` for a text that is too short."""
    length, text = settings.prompt + settings.scored, settings.text.read_text()
    tokens = lm.encode(text, chat=False)
    if len(tokens) < settings.passages * length:
        raise UsageError(
            f"{settings.text} has {len(tokens)} tokens, too few for {settings.passages} passages of {length}"
        )
    step = len(tokens) // settings.passages
    return [tokens[place * step : place * step + length] for place in range(settings.passages)]


def beside(
    settings: CacheSettings, model: str, texts: Sequence[Sequence[int]], share: float, failures: dict[str, str]
) -> dict[str, Any]:
    """Returns what kvpress found on the same passages; why it could not be run goes into `failures`."""
    assert settings.kvpress is not None
    asked = {"model": model, "texts": [list(text) for text in texts], "prompt": settings.prompt, "share": share}
    command = [settings.kvpress, str(Path(presses.__file__))]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, timeout=PEER_SECONDS, check=False
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        failures["kvpress"] = f"{type(error).__name__}: {error}"
        return {}
    return found


SUITE = CacheSuite()
