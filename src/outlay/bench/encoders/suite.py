"""`outlay bench encoders`: forms, speech, architecture, batches of two lengths and CRATE, from one run."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay.bench.arch.suite import ArchSettings, ArchSuite
from outlay.bench.batching.lhotse import version
from outlay.bench.batching.suite import BatchingSettings, BatchingSuite
from outlay.bench.encoders.architecture import measure_splits
from outlay.bench.encoders.forms import measure_forms
from outlay.bench.encoders.plot import write_rates
from outlay.bench.encoders.report import report
from outlay.bench.encoders.speech import measure_speech
from outlay.bench.encoders.white_box import measure_white_box
from outlay.bench.options import check_folder_of, names, refuse_below_one
from outlay.bench.peer import peer
from outlay.bench.suite import Suite
from outlay.compare import plots
from outlay.errors import FailureError, UsageError
from outlay.lm import set_threads
from outlay.progress import ShowProgress
from outlay.vision.crate.diagnostics import EPS2 as RELEASED_EPS2

PARTS = ("forms", "speech", "architecture", "batching", "crate")
MEMORY, SHARE = 80 * 2.0**30, 0.9  # bytes of the device of the batching part, and the share that steps may take


@dataclass(frozen=True)
class EncodersSettings:
    """What is measured."""

    parts: tuple[str, ...]
    """Of `PARTS`."""
    rounds: int
    """Times that each time is taken, in turns."""
    examples: int
    """Of the corpus of lengths."""
    seeds: int
    """Networks that are trained on digits."""
    plot: Path | None = None
    """Where their coding rates are drawn; None: they are not."""


class EncodersSuite(Suite[EncodersSettings]):
    """All of it by one thread and in processor time; what a peer or a download lacks is said in its place."""

    packages = ("outlay", "torch", "transformers", "onnxruntime", "lhotse", "scikit-learn")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the suite's options; the models are made or fetched here."""
        self.add_options(parser)
        parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write everything measured as JSON")

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help="what is measured (%(default)s)")
        parser.add_argument("--rounds", type=int, default=2, metavar="N", help="of each time (%(default)s)")
        parser.add_argument("--examples", type=int, default=60_000, metavar="N", help="lengths to batch (%(default)s)")
        parser.add_argument("--seeds", type=int, default=3, metavar="N", help="digit networks (%(default)s)")
        parser.add_argument("--plot", type=Path, metavar="FILE", help="draw their coding rates by layer: .png, .svg")

    def settings(self, args: argparse.Namespace) -> EncodersSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        refuse_below_one(args, "rounds", "examples", "seeds")
        check_folder_of(args.plot)
        parts = names("part", args.parts, PARTS)
        if args.plot is not None and not plots.available():
            raise UsageError("--plot needs matplotlib: pip install 'outlay[plots]'")
        if args.plot is not None and "crate" not in parts:
            raise UsageError("--plot shows the part crate; add it to --parts")
        return EncodersSettings(parts, args.rounds, args.examples, args.seeds, args.plot)

    def path(self, args: argparse.Namespace) -> Path:
        """Returns what the results are named by."""
        return Path("encoders")

    def measure(self, settings: EncodersSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns what each part found, or under `missing` why it could not be measured."""
        set_threads(1)
        asked = {name: value for name, value in asdict(settings).items() if name != "plot"}
        found: dict[str, Any] = {"settings": asked, "missing": {}}
        for part in settings.parts:
            with tempfile.TemporaryDirectory() as made:
                try:
                    found[part] = _part(part, settings, Path(made), progress)
                except FailureError as error:
                    found["missing"][part] = str(error)
        if settings.plot is not None and "crate" in found:
            write_rates(found["crate"]["digits"], str(RELEASED_EPS2), settings.plot)
        return found

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)

    def failure(self, found: Mapping[str, Any]) -> str | None:
        """Returns why nothing could be measured, None where something was."""
        missing = found["missing"]
        measured = [part for part in PARTS if part in found]
        return None if measured else "; ".join(f"{part}: {reason}" for part, reason in missing.items())


def _part(part: str, settings: EncodersSettings, folder: Path, progress: ShowProgress) -> Any:
    """Measures a part. Raises `FailureError` where it needs what is not there."""
    rounds = settings.rounds
    if part == "forms":
        return measure_forms(peer("transformers", "transformers")[0], folder, progress)
    if part == "speech":
        return measure_speech(folder, rounds, progress)
    if part == "architecture":
        grid = ArchSettings(12, 8, 3, 512, 8192, (512,), (32,), rounds, "float32")
        return {
            "grid": ArchSuite().measure(grid, folder, progress), "splits": measure_splits(folder, rounds, progress)
        }  # fmt: skip
    if part == "batching":
        return _batching(settings.examples, folder, progress)
    return measure_white_box(folder, rounds, settings.seeds, progress)


def _batching(examples: int, folder: Path, progress: ShowProgress) -> dict[str, Any]:
    """Measures the samplers; without lhotse ours alone, with the reason."""
    try:
        version()
        reason = None
    except FailureError as error:
        reason = str(error)
    settings = BatchingSettings(examples, 0, MEMORY, SHARE, reason is None)
    return {**BatchingSuite().measure(settings, folder, progress), "missing": reason}


SUITE = EncodersSuite()
