"""The machine's memory: how fast it is read, which bounds how fast weights can be."""

from __future__ import annotations

import time
from typing import Any

import torch

from outlay.bench.interleave import Participant, Values
from outlay.bench.speed.tasks import ReadMemory


class MemoryBandwidth(Participant):
    """Sums a large buffer; the best of a few repeats counts."""

    name = "memory"

    def takes(self, task: Any) -> bool:
        """Reads memory, and nothing else."""
        return isinstance(task, ReadMemory)

    def load(self) -> dict[str, Any]:
        """Needs nothing."""
        return {}

    def measure(self, task: ReadMemory) -> Values:
        """Returns `bytes_per_second`."""
        torch.set_num_threads(task.threads)
        buffer = torch.ones(task.megabytes * 2**20 // 8, dtype=torch.int64)
        seconds = []
        for _ in range(task.repeats + 1):
            started = time.perf_counter()
            buffer.sum()
            seconds.append(time.perf_counter() - started)
        return {"bytes_per_second": buffer.nbytes / min(seconds[1:])}
