"""What a pass of a model costs on this machine, by its rows: measured by the first few processes that want it, and kept
in the user's cache.

The time of a pass depends on its rows, on the weights' format, the processor and the threads, and on how much text each
row attends to. It is measured for some widths after a short text, and once more after a long one; between the widths it
is taken to be linear.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from statistics import median_low
from typing import ClassVar

import torch

from outlay import kernels
from outlay.engine.engine import Engine
from outlay.engine.method import About, Method, Work
from outlay.engine.submission import RunOptions, Submission
from outlay.engine.tree_run import TreeRun
from outlay.models import hub
from outlay.models.load import Model

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SHORT, LONG = 64, 448  # tokens of text before the passes that are measured
TURNS, IN_A_ROW = 2, 4  # of each width; the first of a row isn't counted
PROCESSES = 3  # that measure: to the first, the machine may have been busy, as it is after an installation


@dataclass(frozen=True)
class PassCosts:
    """`seconds[i]` is the time of a pass over `widths[i]` rows after `SHORT` tokens of text; `slope`, what a row takes
    more for each further token that it attends to.
    """

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

    def marginal(self, rows: float, most: int, context: float = SHORT) -> list[float]:
        """Returns the seconds that 0, 1, ..., `most` further rows take in a pass over `rows`."""
        one = self(rows, context)
        return [self(rows + more, context) - one for more in range(most + 1)]


class Widths(Method):
    """Times passes over chains of each width; commits nothing."""

    about: ClassVar[About] = About(
        name="widths", summary="times passes", paper="", family="measuring", spends="passes", saves=""
    )

    def __init__(self, widths: Sequence[int], *, vectors: bool) -> None:
        """`vectors`: whether the model reads features with its tokens."""
        self.seconds: dict[int, list[float]] = {width: [] for width in widths}
        self._vectors = vectors

    def decode(self, run: TreeRun) -> Work:
        """Yields a few passes of each width in a row, as decoding has them: behind a much wider one, which leaves less
        of the weights in the caches, a narrow pass may take twice as long. The widths take turns, so that a machine
        that drifts drifts for all.
        """
        size = run.model.decoder.config.hidden_size
        yield run.target.topk([run.tip], 1)
        for _ in range(TURNS):
            for width, seconds in self.seconds.items():
                for place in range(IN_A_ROW):
                    vectors = list(torch.zeros(width, size)) if self._vectors else None
                    nodes = run.tree.extend(range(-1, width - 1), range(1, width + 1), inputs_embeds=vectors)
                    started = time.perf_counter()
                    yield run.target.topk(nodes, 1)
                    if place:
                        seconds.append(time.perf_counter() - started)
                    run.tree.prune(())


def measure(model: Model, widths: Sequence[int] = WIDTHS) -> PassCosts:
    """Measures the passes of a model, in an engine of its own: the fastest of each width, the nearest to what it takes
    where nothing else runs.
    """
    engine = Engine(prefix_cache=False)
    config = model.decoder.config
    most, context = min(50, config.vocab_size - 1), max(1, config.max_positions - max(widths) - 2)
    shorter, longer = min(SHORT, context), min(LONG, context)

    def timed(length: int, widths: Sequence[int]) -> dict[int, float]:
        method = Widths(widths, vectors=model.decoder.reads_hidden_states)
        prompt = [1 + place % most for place in range(length)]
        engine.submit(method, Submission(model, prompt, RunOptions(max_tokens=1))).result()
        return {width: min(seconds) for width, seconds in method.seconds.items()}

    short = timed(shorter, widths)
    for width, narrower in zip(widths[:0:-1], widths[-2::-1], strict=True):  # fewer rows never take longer
        short[narrower] = min(short[narrower], short[width])
    probe = max(width for width in widths if width <= 8)
    long = timed(longer, [probe])
    engine.close()
    slope = max(0.0, (long[probe] - short[probe]) / (probe * max(longer - shorter, 1)))
    return PassCosts(tuple(widths), tuple(short[width] for width in widths), slope)


def costs_of(model: Model) -> PassCosts:
    """Returns the costs of a model's passes with the threads in use: measured before, now, or both."""
    threads = kernels.threads() if kernels.available() else torch.get_num_threads()
    device = str(model.decoder.device)
    measured = [WIDTHS, TURNS, IN_A_ROW]
    about = [model.fingerprint, model.format, device, kernels.isa(), str(threads), processor(), str(measured)]
    return _costs(model, sha256("\n".join(about).encode()).hexdigest()[:24])


_KNOWN: dict[str, PassCosts] = {}


def _costs(model: Model, key: str) -> PassCosts:
    if key not in _KNOWN:
        path = hub.cache_folder().parent / "costs" / f"{key}.json"
        found = _read(path)
        if len(found) < PROCESSES:
            found.append(measure(model))
            _write(path, found)
        _KNOWN[key] = _fastest(found)
    return _KNOWN[key]


def _fastest(found: Sequence[PassCosts]) -> PassCosts:
    """Returns the least that each width took, and of the slopes, which are differences, the middle one."""
    seconds = tuple(map(min, zip(*(each.seconds for each in found), strict=True)))
    return PassCosts(found[0].widths, seconds, median_low(each.slope for each in found))


def _read(path: Path) -> list[PassCosts]:
    """Returns what was measured before; nothing where the file doesn't hold that."""
    try:
        held = json.loads(path.read_text())
        widths = tuple(map(int, held["widths"]))
        found = [PassCosts(widths, tuple(map(float, seconds)), float(slope)) for seconds, slope in held["measured"]]
        return found if len(widths) > 1 and all(len(each.seconds) == len(widths) for each in found) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write(path: Path, found: Sequence[PassCosts]) -> None:
    """Keeps what was measured; a cache that can't be written is measured again next time."""
    held = {"widths": found[0].widths, "measured": [[each.seconds, each.slope] for each in found]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(held))
        part.replace(path)
    except OSError:
        return


@cache
def processor() -> str:
    """Returns the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
