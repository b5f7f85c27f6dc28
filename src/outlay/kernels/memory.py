"""Memory for weights, in large pages where the system has them.

A pass reads all weights from end to end. In pages of 4 KiB it looks up the place of each page, and fetching ahead stops
at a page's end; pages of 2 MiB have both a few hundred times less often. Layers are put side by side, for most are
smaller than such a page.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

_BLOCK = 64 << 20  # bytes that are mapped at a time; those that are not used are never taken from the system
_LINE = 64  # bytes of a cache line


class Memory:
    """Gives out pieces of large blocks. A block is given back when all of its pieces are."""

    def __init__(self) -> None:
        self._block, self._used = torch.empty(0, dtype=torch.uint8), 0

    def hold(self, data: Tensor) -> Tensor:
        """Returns a copy of a tensor of bytes; where no block can be had, the tensor itself."""
        size = data.numel()
        if self._used + size > self._block.numel():
            try:
                self._block, self._used = _mapped(max(size, _BLOCK)), 0
            except (OSError, ValueError):
                return data
        piece = self._block[self._used : self._used + size]
        self._used += -(-size // _LINE) * _LINE
        return piece.copy_(data.flatten())


def _mapped(size: int) -> Tensor:
    """Returns that many bytes, for which large pages are asked for where that is known."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    block = mmap.mmap(-1, size, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=torch.uint8)


weights = Memory()
