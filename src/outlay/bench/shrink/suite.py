"""`outlay bench shrink`: shrinks a model by several methods, and holds each to the original in float32."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from outlay import shrink
from outlay.bench.accuracy.formats import Extent, Variant
from outlay.bench.accuracy.suite import AccuracySettings, AccuracySuite
from outlay.bench.data import NOVEL
from outlay.bench.shrink.peers import DEFAULTS, FACTS, PEERS, Made, Peer, run_peer, write_floats
from outlay.bench.shrink.plot import write_plot
from outlay.bench.shrink.report import report
from outlay.bench.suite import Suite
from outlay.errors import FailureError, UsageError
from outlay.models.checkpoint import read_json
from outlay.models.linear import native_kernels
from outlay.models.load import load_model, open_model
from outlay.progress import ShowProgress
from outlay.shrink.catalog import make
from outlay.shrink.run import sequences_of

METHODS = (
    "rtn:bits=3", "gptq:bits=4", "gptq:bits=3", "gptq:bits=3,act_order=true", "gptq:bits=2,act_order=true",
    "pvq:pulses=58", "pvq:pulses=27", "pvq:pulses=21", "pvq:pulses=12", "pvq:rotate=false", "pvq:feedback=false",
    "vptq:k_res=16", "vptq:k_res=0", "vptq:k_res=0,outlier_pct=2",
)  # fmt: skip
AT_ONCE = 6
"""Checkpoints whose weights are in memory at a time, in float32."""
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
    peers: Sequence[Peer] = ()
    pythons: Mapping[str, Path] = field(default_factory=dict)
    """The Python that runs a peer, by the peer's name; this one where there is none."""


class ShrinkSuite(Suite[ShrinkSettings]):
    """Each method shrinks the model once; the original and all results then read the same windows."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        parser.add_argument("--methods", default=" ".join(METHODS), metavar="'A B'", help="methods with options, "
                            "spaces between them (%(default)s)")  # fmt: skip
        parser.add_argument("--peers", default=" ".join(PEERS), metavar="'A B'", help="quantizers of other projects, "
                            "with options, on the same weights and calibration (%(default)s)")  # fmt: skip
        parser.add_argument("--python", action="append", default=[], metavar="PEER=FILE", help="the Python of an "
                            "environment that has a peer (this one); may be given again for others")  # fmt: skip
        parser.add_argument("--calib", type=Path, default=None, metavar="FILE", help="a text that calibrates (its own)")
        parser.add_argument("--tokens", type=int, default=8192, metavar="N", help="of the calibration (%(default)s)")
        parser.add_argument("--texts", type=Path, nargs="*", default=None, metavar="FILE", help="texts to predict (the "
                            "reference of Python's language, and War and Peace)")  # fmt: skip
        parser.add_argument("--windows", type=int, default=4, metavar="N", help="of each text (%(default)s)")
        parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="keep the folders and what is "
                            "found of them, and take what is there")  # fmt: skip
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
        peers = [Peer.of(each) for each in args.peers.split()]
        pythons = {}
        for each in args.python:
            name, _, file = each.partition("=")
            if name not in DEFAULTS or not Path(file).is_file():
                raise UsageError(f"--python is PEER=FILE, of one of {', '.join(DEFAULTS)} and a Python, not {each!r}")
            pythons[name] = Path(file)
        extent = Extent(args.windows)
        return ShrinkSettings(methods, args.calib, args.tokens, texts, extent, args.keep, args.plot, peers, pythons)

    def measure(self, settings: ShrinkSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns a row for each method: bits, errors, bytes of a pass, seconds, and ratios of perplexities by text.

        Peers have rows without errors and bytes of a pass; those that are missing or failed stand in `failures`.
        """
        keep = settings.keep
        with tempfile.TemporaryDirectory() if keep is None else nullcontext(str(keep)) as place:
            folders = {method: Path(place) / _folder_name(method) for method in settings.methods}
            rows = []
            for number, (method, folder) in enumerate(folders.items()):
                progress(f"shrinking by {method}", number, len(folders))
                if not (folder / "report.json").exists():
                    shrink.run(model, method, folder, calib=settings.calib, tokens=settings.tokens, progress=progress)
                about = read_json(folder / "report.json")
                kept = ("bits", "file_bits", "error", "unfed_error", "cpu_seconds", "tokens", "text")
                read = load_model(folder).decoder.pass_weight_bytes(1)
                rows.append({"method": method, "texts": {}, "pass_bytes": read, **{key: about[key] for key in kept}})
            paths = dict(folders)
            failures: dict[str, str] = {}
            for peer, made in self._made(settings, model, Path(place), failures, progress):
                paths[peer.label] = made.path
                rows.append({"method": peer.label, "texts": {}, "error": None, "unfed_error": None, **made.facts})
            for text in settings.texts:
                found = self._predictions(text, paths, settings, model, Path(place), progress)
                for row in rows:
                    row["texts"][text.name if text else DOCUMENTATION] = found[paths[row["method"]].name]
        if settings.plot is not None:
            write_plot(rows, settings.plot)
        in_4_bits = load_model(model, dtype="int4").decoder.pass_weight_bytes(1)  # embeddings and LM head in 8
        return {"rows": rows, "failures": failures, "windows": settings.extent.windows, "pass_bytes_int4": in_4_bits}

    def _made(
        self, settings: ShrinkSettings, model: Path, place: Path, failures: dict[str, str], progress: ShowProgress
    ) -> Iterator[tuple[Peer, Made]]:
        """Yields what each peer made, on the calibration of the methods; adds to `failures` why another didn't."""
        if not settings.peers:
            return
        floats = place / "floats"
        if not (floats / "config.json").exists():
            write_floats(model, floats)
        calibration, _ = sequences_of(model, open_model(model), settings.calib, settings.tokens, 0, progress)
        for number, peer in enumerate(settings.peers):
            progress(f"quantizing by {peer.label}", number, len(settings.peers))
            out = place / _folder_name(peer.label)
            try:
                yield peer, run_peer(peer, settings.pythons.get(peer.name), model, floats, calibration, out)
            except FailureError as error:
                failures[peer.label] = str(error)

    def _predictions(
        self,
        text: Path | None,
        paths: Mapping[str, Path],
        settings: ShrinkSettings,
        model: Path,
        place: Path,
        progress: ShowProgress,
    ) -> dict[str, Any]:
        """Returns what the accuracy suite finds of each checkpoint on one text, by the name of its folder or file.

        What it finds of some is kept beside the checkpoints before the next are measured, so that a run can be stopped.
        """
        file = place / f"{DOCUMENTATION}.txt" if text is None else text
        if text is None:
            file.write_text("\n\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
        kept = ("ratio", "perplexity", "reference_perplexity", "kl", "agreement", "same")
        scores = {path.name: _scores(place, path, file, settings.extent) for path in paths.values()}
        left = [path for path in paths.values() if not scores[path.name].exists()]
        for first in range(0, len(left), AT_ONCE):
            variants = [
                Variant("float32", native_kernels(), source=str(path)) for path in left[first : first + AT_ONCE]
            ]
            found = AccuracySuite().measure(AccuracySettings(file, variants, settings.extent), model, progress)
            if found["failures"]:
                raise FailureError(next(iter(found["failures"].values())))
            for row in found["rows"]:
                scores[row["name"]].write_text(json.dumps({key: row[key] for key in kept}))
        return {name: read_json(path) for name, path in scores.items()}

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)


def _scores(place: Path, checkpoint: Path, text: Path, extent: Extent) -> Path:
    """Returns the file that keeps what is found of a checkpoint on a text; another for another checkpoint or text."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    digest = sha256(repr(extent).encode() + text.read_bytes())
    for about in (folder / "report.json", folder / FACTS):
        if about.exists():
            digest.update(about.read_bytes() + str(about.stat().st_mtime_ns).encode())
    return place / f"{checkpoint.name}.{text.stem}.{digest.hexdigest()[:12]}.json"


def _folder_name(method: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in method)


SUITE = ShrinkSuite()
