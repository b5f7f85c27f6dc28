"""`outlay bench shrink`: shrinks a model by several methods, and holds each to the original in float32."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from outlay import shrink
from outlay.bench.accuracy.formats import Extent, Variant
from outlay.bench.accuracy.suite import AccuracySettings, AccuracySuite
from outlay.bench.data import NOVEL
from outlay.bench.shrink.plot import write_plot
from outlay.bench.shrink.report import report
from outlay.bench.suite import Suite
from outlay.errors import UsageError
from outlay.models.checkpoint import read_json
from outlay.models.linear import native_kernels
from outlay.models.load import load_model
from outlay.progress import ShowProgress
from outlay.shrink.catalog import make

METHODS = (
    "rtn:bits=3", "gptq:bits=4", "gptq:bits=3", "gptq:bits=3,act_order=true", "gptq:bits=2,act_order=true",
    "pvq:pulses=58", "pvq:pulses=27", "pvq:pulses=21", "pvq:pulses=12", "pvq:rotate=false", "pvq:feedback=false",
    "vptq:k_res=16", "vptq:k_res=0", "vptq:k_res=0,outlier_pct=2",
)  # fmt: skip
DOCUMENTATION = "documentation"  # Python's language reference, as `help()` shows it: no docstring calibrates with it


@dataclass(frozen=True)
class ShrinkSettings:
    """What is shrunk, and held to the original on which texts."""

    methods: Sequence[str]
    calib: Path | None
    tokens: int
    texts: Sequence[Path | None]
    extent: Extent
    keep: Path | None
    plot: Path | None


class ShrinkSuite(Suite[ShrinkSettings]):
    """Each method shrinks the model once; the original and all results then read the same windows."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        parser.add_argument("--methods", default=" ".join(METHODS), metavar="'A B'", help="methods with options, "
                            "spaces between them (%(default)s)")  # fmt: skip
        parser.add_argument("--calib", type=Path, default=None, metavar="FILE", help="a text that calibrates (its own)")
        parser.add_argument("--tokens", type=int, default=8192, metavar="N", help="of the calibration (%(default)s)")
        parser.add_argument("--texts", type=Path, nargs="*", default=None, metavar="FILE", help="texts to predict (the "
                            "reference of Python's language, and War and Peace)")  # fmt: skip
        parser.add_argument("--windows", type=int, default=4, metavar="N", help="of each text (%(default)s)")
        parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="keep the folders, and take those "
                            "that are there")  # fmt: skip
        parser.add_argument("--plot", type=Path, default=None, metavar="FILE", help="quality over bits: .png or .svg")

    def settings(self, args: argparse.Namespace) -> ShrinkSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        methods = args.methods.split()
        if not methods:
            raise UsageError("--methods names none")
        for method in methods:
            make(method, None)
        for name in ("tokens", "windows"):
            if getattr(args, name) < 1:
                raise UsageError(f"--{name} must be 1 or more, not {getattr(args, name)}")
        texts = [None, NOVEL] if args.texts is None else args.texts
        for text in [each for each in (*texts, args.calib) if each is not None]:
            if not text.is_file():
                raise UsageError(f"there is no text {text}")
        return ShrinkSettings(methods, args.calib, args.tokens, texts, Extent(args.windows), args.keep, args.plot)

    def measure(self, settings: ShrinkSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns a row for each method: bits, errors, bytes of a pass, seconds, and ratios of perplexities by text."""
        keep = settings.keep
        with tempfile.TemporaryDirectory() if keep is None else nullcontext(str(keep)) as place:
            folders = {method: Path(place) / _folder_name(method) for method in settings.methods}
            rows = []
            for number, (method, folder) in enumerate(folders.items()):
                progress(f"shrinking by {method}", number, len(folders))
                if not (folder / "report.json").exists():
                    shrink.run(model, method, folder, calib=settings.calib, tokens=settings.tokens, progress=progress)
                about = read_json(folder / "report.json")
                kept = ("bits", "file_bits", "error", "unfed_error", "seconds", "tokens", "text")
                read = load_model(folder).decoder.pass_weight_bytes(1)
                rows.append({"method": method, "texts": {}, "pass_bytes": read, **{key: about[key] for key in kept}})
            for text in settings.texts:
                found = self._predictions(text, folders, settings, model, Path(place), progress)
                for row in rows:
                    row["texts"][text.name if text else DOCUMENTATION] = found[folders[row["method"]].name]
        if settings.plot is not None:
            write_plot(rows, settings.plot)
        in_4_bits = load_model(model, dtype="int4").decoder.pass_weight_bytes(1)  # embeddings and LM head in 8
        return {"rows": rows, "windows": settings.extent.windows, "pass_bytes_int4": in_4_bits}

    def _predictions(
        self,
        text: Path | None,
        folders: Mapping[str, Path],
        settings: ShrinkSettings,
        model: Path,
        place: Path,
        progress: ShowProgress,
    ) -> dict[str, Any]:
        """Returns what the accuracy suite finds of each folder on one text, by the folder's name."""
        file = place / f"{DOCUMENTATION}.txt" if text is None else text
        if text is None:
            file.write_text("\n\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
        variants = [Variant("float32", native_kernels(), source=str(folder)) for folder in folders.values()]
        found = AccuracySuite().measure(AccuracySettings(file, variants, settings.extent), model, progress)
        kept = ("ratio", "perplexity", "reference_perplexity", "kl", "agreement", "same")
        return {row["name"]: {key: row[key] for key in kept} for row in found["rows"]}

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)


def _folder_name(method: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in method)


SUITE = ShrinkSuite()
