"""What a pass of a model costs on this machine, by its rows: measured once, and kept in the user's cache.

The time of a pass depends on its rows, on the weights' format, the processor and the threads, and on how much text each
row attends to. It is measured for some widths after a short text, and once more after a long one; between the widths it
is taken to be linear.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import ClassVar

import torch

from outlay import kernels
from outlay.engine.engine import Engine
from outlay.engine.method import About, Method, Work
from outlay.engine.run import Run, RunOptions
from outlay.models import hub
from outlay.models.load import Model
from outlay.tree.token_tree import Node

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SHORT, LONG = 64, 448  # tokens of text before the passes that are measured
REPEATS = 5


@dataclass(frozen=True)
class PassCosts:
    """`seconds[i]` is the time of a pass over `widths[i]` rows after `SHORT` tokens of text; `slope`, what a row takes
    more for each further token that it attends to."""

    widths: tuple[int, ...]
    seconds: tuple[float, ...]
    slope: float

    def __call__(self, rows: float, context: float = SHORT) -> float:
        """Returns the seconds of a pass over so many rows, each after so much text."""
        widths, seconds = self.widths, self.seconds
        right = min(max(bisect_right(widths, rows), 1), len(widths) - 1)
        left = right - 1
        share = (rows - widths[left]) / (widths[right] - widths[left])
        at = seconds[left] + share * (seconds[right] - seconds[left])
        return max(at, 1e-9) + max(0.0, context - SHORT) * rows * self.slope


class Widths(Method):
    """Times passes over chains of each width, three times or more; commits nothing."""

    about: ClassVar[About] = About(
        name="widths", summary="times passes", paper="", family="measuring", spends="passes", saves=""
    )

    def __init__(self, widths: Sequence[int], *, vectors: bool) -> None:
        """`vectors`: whether the model reads features with its tokens."""
        self.seconds: dict[int, list[float]] = {width: [] for width in widths}
        self._vectors = vectors

    def decode(self, run: Run) -> Work:
        """Yields the passes in turn, so that a machine that drifts drifts for all; the first of each is not counted."""
        yield run.target.top([run.tip], 1)
        for turn in range(REPEATS + 1):
            for width, seconds in self.seconds.items():
                nodes: list[Node] = []
                for token in range(width):
                    vector = [torch.zeros(run.model.decoder.config.hidden_size)] if self._vectors else None
                    nodes += run.tree.extend([nodes[-1] if nodes else run.tip], [token + 1], vectors=vector)
                started = time.perf_counter()
                yield run.target.top(nodes, 1)
                if turn:
                    seconds.append(time.perf_counter() - started)
                run.tree.prune(())


def measure(model: Model, widths: Sequence[int] = WIDTHS) -> PassCosts:
    """Measures the passes of a model, in an engine of its own."""
    engine = Engine(prefix_cache=False)
    context = model.decoder.config.max_positions - max(widths) - 2

    def timed(length: int, widths: Sequence[int]) -> dict[int, float]:
        method = Widths(widths, vectors=model.decoder.reads_features)
        prompt = [1 + place % 50 for place in range(max(1, min(length, context)))]
        engine.submit(model, method, prompt, RunOptions(max_tokens=1)).result()
        return {width: median(seconds) for width, seconds in method.seconds.items()}

    short = timed(SHORT, widths)
    probe = max(width for width in widths if width <= 8)
    long = timed(LONG, [probe])
    engine.close()
    slope = max(0.0, (long[probe] - short[probe]) / (probe * (LONG - SHORT)))
    return PassCosts(tuple(widths), tuple(short[width] for width in widths), slope)


def costs_of(model: Model) -> PassCosts:
    """Returns the costs of a model's passes with the threads in use: measured before, or now."""
    threads = kernels.threads() if kernels.available() else torch.get_num_threads()
    device = str(model.decoder.device)
    about = [model.fingerprint, model.format, device, kernels.isa(), str(threads), processor(), str(WIDTHS)]
    return _costs(model, sha256("\n".join(about).encode()).hexdigest()[:24])


_KNOWN: dict[str, PassCosts] = {}


def _costs(model: Model, key: str) -> PassCosts:
    if key not in _KNOWN:
        path = hub.cache_folder().parent / "costs" / f"{key}.json"
        found = _read(path)
        if found is None:
            found = measure(model)
            _write(path, found)
        _KNOWN[key] = found
    return _KNOWN[key]


def _read(path: Path) -> PassCosts | None:
    try:
        held = json.loads(path.read_text())
        return PassCosts(tuple(held["widths"]), tuple(held["seconds"]), held["slope"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, costs: PassCosts) -> None:
    """Keeps what was measured; a cache that can't be written is measured again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(costs)))
        part.replace(path)
    except OSError:
        return


@cache
def processor() -> str:
    """Returns the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
