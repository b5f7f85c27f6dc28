"""The machine's limits: how fast memory is read, and how fast the kernels multiply what lies in the caches."""

from __future__ import annotations

import time
from typing import Any

import torch

from outlay import kernels
from outlay.bench.interleave import Participant, Values
from outlay.bench.speed.tasks import PeakProducts, ReadMemory

ROWS, OUT, IN = 240, 256, 1024  # of the layer: its weights and inputs fit into the second-level cache


class MachineLimit(Participant):
    """Sums a large buffer, where the best of a few repeats counts; multiplies with a small layer."""

    name = "memory"

    def takes(self, task: Any) -> bool:
        """Reads memory and multiplies, and nothing else."""
        return isinstance(task, ReadMemory | PeakProducts)

    def load(self) -> dict[str, Any]:
        """Needs nothing."""
        return {}

    def measure(self, task: ReadMemory | PeakProducts) -> Values:
        """Returns `bytes_per_second`, or the multiplications a second with each format's weights, by its name."""
        return _peaks(task) if isinstance(task, PeakProducts) else _bandwidth(task)


def _bandwidth(task: ReadMemory) -> Values:
    torch.set_num_threads(task.threads)
    buffer = torch.ones(task.megabytes * 2**20 // 8, dtype=torch.int64)
    seconds = []
    for _ in range(task.repeats + 1):
        started = time.perf_counter()
        buffer.sum()
        seconds.append(time.perf_counter() - started)
    return {"bytes_per_second": buffer.nbytes / min(seconds[1:])}


def _peaks(task: PeakProducts) -> Values:
    if not kernels.available():
        return {}
    kernels.set_threads(task.threads)
    weight, x = torch.randn(OUT, IN), torch.randn(ROWS, IN)
    layers = {
        "int4": kernels.pack_q4(*kernels.quantize_q4(weight)),
        "int8": kernels.pack_q8(*kernels.quantize_q8(weight)),
        "bfloat16": kernels.pack_bf16(weight),
        "float32": kernels.pack_f32(weight),
    }
    peaks = {}
    for name, layer in layers.items():
        seconds, end = list[float](), time.perf_counter() + task.duration
        while time.perf_counter() < end or len(seconds) < 3:
            started = time.perf_counter()
            layer(x)
            seconds.append(time.perf_counter() - started)
        peaks[name] = ROWS * OUT * IN / min(seconds)
    return peaks
