"""Memory for weights, in large pages where the system has them.

A pass reads all weights from end to end. Each page of 4 KiB costs a TLB miss, and prefetching stops at its end; pages
of 2 MiB have both a few hundred times less often. Layers lie side by side, since most are smaller than such a page.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

_BLOCK = 64 << 20  # bytes that are mapped at a time; the system provides them when they are first used
_LINE = 64  # bytes of a cache line


class Memory:
    """Allocates from large blocks. A block is freed when all that was allocated from it is."""

    def __init__(self) -> None:
        self._block, self._used = torch.empty(0, dtype=torch.uint8), 0

    def hold(self, data: Tensor) -> Tensor:
        """Returns a copy of a tensor of bytes; where no block can be mapped, the tensor itself."""
        size = data.numel()
        if self._used + size > self._block.numel():
            try:
                self._block, self._used = _mapped(max(size, _BLOCK)), 0
            except (OSError, ValueError):
                return data
        copy = self._block[self._used : self._used + size]
        self._used += -(-size // _LINE) * _LINE
        return copy.copy_(data.flatten())


def _mapped(size: int) -> Tensor:
    """Returns memory of `size` bytes, in large pages where the system can be asked for them."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    block = mmap.mmap(-1, size, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    with torch.inference_mode(False):  # the block outlives this call, and what is loaded later may be in no such mode
        return torch.frombuffer(block, dtype=torch.uint8)


weights = Memory()
