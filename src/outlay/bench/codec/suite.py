"""`outlay bench codec`: files through a model and back, beside xz and zlib."""

from __future__ import annotations

import argparse
import io
import lzma
import random
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.bench.codec.report import report
from outlay.bench.data import DATA, ROOT
from outlay.bench.suite import Suite
from outlay.codec.circuit.coders import coder_of
from outlay.codec.container import unpack
from outlay.codec.files import compress_all, decompress_all, open_text, whole
from outlay.errors import UsageError
from outlay.lm import set_threads
from outlay.models.load import load_model
from outlay.progress import ShowProgress
from outlay.python_sources import library_files

NOVEL = "war_and_peace.txt"
SKIPPED = 200_000  # bytes at the beginning of a long file, such as a table of contents


@dataclass(frozen=True)
class CodecSettings:
    """What is compressed."""

    files: tuple[Path, ...]
    data: Path
    size: int
    threads: int | None


class CodecSuite(Suite[CodecSettings]):
    """Bytes, seconds and what won, for each file."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        parser.add_argument("--files", default="", metavar="A,B", help="more files to compress")
        parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help=f"where {NOVEL} is")
        parser.add_argument("--bytes", type=int, default=24_000, metavar="N", help="of each file (%(default)s)")
        parser.add_argument("--threads", type=int, default=None, metavar="N", help="threads to compute with")

    def settings(self, args: argparse.Namespace) -> CodecSettings:
        """Returns what the options ask for. Raises `UsageError` for a file that is not there."""
        files = tuple(Path(name) for name in filter(None, args.files.split(",")))
        missing = next((path for path in files if not path.is_file()), None)
        if missing is not None:
            raise UsageError(f"there is no file {missing}")
        return CodecSettings(files, args.data, args.bytes, args.threads)

    def measure(self, settings: CodecSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns a row for each file, and the rates of writing and reading them together."""
        set_threads(settings.threads)
        originals = dict(samples(settings))
        total = sum(map(len, originals.values()))
        coder, rows = open_text(load_model(model)), list[dict[str, Any]]()
        with coder.codec:
            for name, data in originals.items():
                progress("writing", len(rows), len(originals))
                started = time.perf_counter()
                ((_, found),) = compress_all([(name, data)], [coder])
                rows.append(_row(name, data, found, time.perf_counter() - started))
            kept = [(name, found.container) for name, found in compress_all(originals.items(), [coder])]
            progress("reading", 0, total)
            started = time.perf_counter()
            for name, container, decoded in decompress_all(kept, coder):
                assert whole(container, decoded) == originals[name]
            seconds = time.perf_counter() - started
        symbols = sum(block.symbols for _, container in kept for block in container.blocks)
        blocks = sum(len(container.blocks) for _, container in kept if container.kind == "text")
        read = {"symbols": symbols, "seconds": seconds, "blocks": blocks}
        progress("photos", 0, 0)
        return {"size": settings.size, "rows": rows, "read": read, "photos": photos()}

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)


def samples(settings: CodecSettings) -> Iterator[tuple[str, bytes]]:
    """Yields names and bytes: the novel and the documentation if they are there, Python code, numbers as JSON, and the
    files asked for. The documentation is text that is newer than the models.
    """
    novel = settings.data / NOVEL
    if novel.is_file():
        yield NOVEL, _some(novel, settings.size)
    pages = sorted((ROOT / "docs").glob("*.md"))
    if pages:
        yield "documentation.md", b"\n".join(page.read_bytes() for page in pages)[: settings.size]
    code = next(path for path in library_files() if path.name == "argparse.py")
    yield code.name, _some(code, settings.size)
    draw = random.Random(0)
    numbers = ", ".join(f"{draw.gauss(0, 100):.4f}" for _ in range(settings.size))
    yield "numbers.json", f"[{numbers}]".encode()[: settings.size]
    for path in settings.files:
        yield path.name, _some(path, settings.size)


def photos() -> list[dict[str, Any]]:
    """Returns the bits of a sample of scikit-learn's two photographs, at 320 x 224; none where it is not installed."""
    try:
        from PIL import Image
        from sklearn.datasets import load_sample_images
    except ImportError:
        return []
    coder, found = coder_of(None, pixels=True), []
    data = load_sample_images()
    for name, photo in zip(data.filenames, data.images, strict=True):
        small = Image.fromarray(photo).resize((320, 224), Image.Resampling.LANCZOS)
        png, webp = io.BytesIO(), io.BytesIO()
        small.save(png, "PNG", optimize=True)
        small.save(webp, "WEBP", lossless=True, quality=100, method=6)
        ((_, packed),) = compress_all([(0, png.getvalue())], [coder])
        container = unpack(packed.data)
        ((_, _, decoded),) = decompress_all([(0, container)], coder)
        assert whole(container, decoded).endswith(small.tobytes())
        sizes = {"png": png.tell(), "webp": webp.tell(), "patches": len(packed.data)}
        bits = {kind: 8 * size / (3 * small.width * small.height) for kind, size in sizes.items()}
        found.append({"name": Path(name).name, "bits": bits})
    return found


def _some(path: Path, size: int) -> bytes:
    data = path.read_bytes()
    begin = SKIPPED if len(data) > SKIPPED + size else 0
    return data[begin : begin + size]


def _row(name: str, data: bytes, found: Any, seconds: float) -> dict[str, Any]:
    """Returns what became of a file."""
    container = found.container
    ideal = found.ledger.extras.get("ideal_bits")
    coded = 8 * sum(block.coded for block in container.blocks)
    return {
        "name": name,
        "bytes": len(data),
        "kept": len(found.data),
        "won": container.kind,
        "sizes": found.sizes,
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        "zlib": len(zlib.compress(data, 9)),
        "over_ideal": coded / ideal - 1 if ideal and container.kind == "text" else None,
        "symbols": sum(block.symbols for block in container.blocks),
        "seconds": seconds,
    }


SUITE = CodecSuite()
