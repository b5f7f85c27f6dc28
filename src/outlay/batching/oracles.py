"""What fits: three answers for the batch-size search, by trying a step, by a memory model, and by a step's time.

A `Step` is a whole training step on made-up examples of full length: gradients zeroed, forward, backward, optimizer.
`probe` measures what a step takes where no allocator counts, for a memory model to be fitted to.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from outlay.batching.memory import MemoryModel, Probe
from outlay.errors import FailureError, UsageError

Step = Callable[[int, float, float], object]
"""Takes one training step, by the size of its batch and the two lengths of its examples."""

SHARE = 0.9  # of a device's memory that steps may take
OUT_OF_MEMORY = ("CUFFT_INTERNAL_ERROR", "out of memory")  # in the texts of errors that are no OutOfMemoryError


@dataclass
class AllocatorFits:
    """Takes the step, and tells whether the allocator had the memory.

    Nothing is emptied between trials, so that fragmentation is as in training: search from the longest bucket down.
    """

    step: Step
    """The training step."""
    device: str = "cuda"
    """Device whose memory is capped; on others the step itself must run out of memory."""
    share: float = SHARE
    """Share of the device's memory that may be taken."""
    replicas: tuple[nn.Module, ...] = ()
    """Modules of which a second copy is held, as distributed training holds their gradients."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(f"share must be above 0 and at most 1, not {self.share}")
        self._held = [copy.deepcopy(module) for module in self.replicas]
        if torch.device(self.device).type == "cuda":
            torch.cuda.set_per_process_memory_fraction(self.share, torch.device(self.device))

    def __call__(self, batch: int, input: float, output: float) -> bool:
        """Tells whether a step over a batch of this size fits."""
        try:
            self.step(batch, input, output)
        except (torch.OutOfMemoryError, MemoryError):
            return False
        except RuntimeError as error:
            if any(text in str(error) for text in OUT_OF_MEMORY):
                return False
            raise
        return True


@dataclass(frozen=True)
class MemoryFits:
    """Compares what a memory model predicts with a limit."""

    model: MemoryModel
    """Predicts a step's bytes."""
    limit: float
    """Bytes of the device."""
    share: float = SHARE
    """Share of them that a step may take."""

    def __post_init__(self) -> None:
        if not self.limit > 0 or not 0 < self.share <= 1:
            raise UsageError("the limit of memory must be above 0, and share above 0 and at most 1")

    def __call__(self, batch: int, input: float, output: float) -> bool:
        """Tells whether a step over a batch of this size fits."""
        return self.model.bytes(batch, input, output) <= self.share * self.limit


@dataclass(frozen=True)
class StepTimeFits:
    """Takes the step, and compares its time with a limit."""

    step: Step
    """The training step."""
    limit: float
    """Seconds that a step may take."""
    repeats: int = 2
    """Steps that are timed; the fastest counts, as the first of a shape is often slower."""
    clock: Callable[[], float] = time.process_time
    """Processor time by default, since the wall clock also shows what else a machine does."""

    def __post_init__(self) -> None:
        if not self.limit > 0 or self.repeats < 1:
            raise UsageError("the limit of a step's seconds must be above 0, and repeats 1 or more")

    def __call__(self, batch: int, input: float, output: float) -> bool:
        """Tells whether a step over a batch of this size is fast enough."""
        for _ in range(self.repeats):
            started = self.clock()
            self.step(batch, input, output)
            if self.clock() - started <= self.limit:
                return True
        return False


def saved_bytes(step: Step, batch: int, input: float, output: float, weights: Iterable[Tensor] = ()) -> int:
    """Counts the bytes that a step keeps for its way back, each storage once.

    The step may compute on the meta device: nothing is then allocated, and the count is the same.

    Args:
        step: The training step; its forward pass is enough.
        batch: Examples.
        input: Their input length.
        output: Their output length.
        weights: Tensors that are kept anyway and don't count.
    """
    known = {weight.untyped_storage()._cdata: 0 for weight in weights}
    held: list[Tensor] = []  # as long as they are held, no storage takes the place of another

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        step(batch, input, output)
    return sum(known.values())


def peak_rss(step: Step, batch: int, input: float, output: float) -> int:
    """Returns the most memory that the process held during a step, in bytes.

    Raises:
        FailureError: The system doesn't tell it.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is held now
        step(batch, input, output)
        status = Path("/proc/self/status").read_text()
    except OSError as error:
        raise FailureError(f"the system doesn't tell the memory that a process takes: {error}") from error
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def probe(measure: Callable[[int, float, float], int], input: float, output: float, fixed: int = 0) -> list[Probe]:
    """Measures steps of several shapes up to a largest one, for `MemoryModel.fit`.

    Args:
        measure: Returns the bytes of a step over a batch of two lengths: `peak_rss` or `saved_bytes` of a step.
        input: The longest input length.
        output: The longest output length.
        fixed: Bytes that are held beside what `measure` counts, such as the optimizer's state.
    """
    parts = (1.0, 0.5, 0.25)
    shapes = [(batch, input * s, output * t) for batch in (1, 2) for s in parts for t in parts]
    return [Probe(batch, s, t, fixed + measure(batch, s, t)) for batch, s, t in shapes]
