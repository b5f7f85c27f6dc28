"""The tuning of VPTQ's codebooks, a layer at a time: indices stay, entries and norms go down the gradient.

Liu et al. 2024, section 3.3: after a layer is quantized, its centroids and the weights of its norms are trained on the
mean square difference between its output and that of the float layer, both of the same inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from outlay.models.forms.vptq import Codebook, VptqMatrix
from outlay.shrink.block import Block, Norms, Tuning
from outlay.shrink.vptq.method import Table, on_grid


def tuned(
    block: Block, matrices: Mapping[str, VptqMatrix], tuning: Tuning, grid: bool
) -> tuple[dict[str, VptqMatrix], Norms, tuple[float, float]]:
    """Tunes a layer's codebooks and norms. Deterministic.

    Args:
        block: The layer.
        matrices: Its matrices that were quantized, by module.
        tuning: How long, and how fast.
        grid: Whether entries are put back on an 8-bit grid.

    Returns:
        The matrices with other entries, the norms, and the mean square difference of the layer's output before and
        after. Where it isn't less afterwards, all are as they were.
    """
    held = {module: _Tuned(matrix) for module, matrix in matrices.items()}
    attn, mlp = (weight.clone().requires_grad_() for weight in (block.norms.attn, block.norms.mlp))
    parameters = [attn, mlp, *(table for each in held.values() for table in each.parameters)]
    optimizer = torch.optim.Adam(parameters, lr=tuning.lr)
    before = block.error(_weights(matrices), block.norms)
    for step in range(tuning.iterations):
        batch = block.batches[step % len(block.batches)]
        output = block.output(batch, {module: each.weight() for module, each in held.items()}, Norms(attn, mlp))
        optimizer.zero_grad()
        (output - batch.targets).square().mean().backward()
        optimizer.step()
    found = {module: each.matrix(grid) for module, each in held.items()}
    norms = Norms(attn.detach(), mlp.detach())
    after = block.error(_weights(found), norms)
    if not after < before:
        return dict(matrices), block.norms, (before, before)
    return found, norms, (before, after)


def _weights(matrices: Mapping[str, VptqMatrix]) -> dict[str, Tensor]:
    return {module: matrix.dequantize() for module, matrix in matrices.items()}


class _Tuned:
    """A matrix whose entries are parameters."""

    def __init__(self, matrix: VptqMatrix) -> None:
        self._plain = matrix
        self._books = [
            _with_entries(book, _parameter(book.entries), _parameter(book.residual)) for book in matrix.books
        ]
        tables = [table for book in self._books for table in (book.entries, book.residual)]
        self.parameters: Sequence[Tensor] = [table for table in tables if table is not None]

    def weight(self) -> Tensor:
        """Returns the matrix, float32 [out, in], through which gradients flow to the entries."""
        return replace(self._plain, books=tuple(self._books)).dequantize()

    def matrix(self, grid: bool) -> VptqMatrix:
        """Returns the matrix as a file holds it, its entries in half precision."""
        tables = [
            Table(_half(book.entries), None if book.residual is None else _half(book.residual)) for book in self._books
        ]
        if grid:
            tables = on_grid(tables)
        books = [_with_entries(book, *table) for book, table in zip(self._books, tables, strict=True)]
        return replace(self._plain, books=tuple(books))


def _with_entries(book: Codebook, entries: Tensor | None, residual: Tensor | None) -> Codebook:
    assert entries is not None
    return replace(book, entries=entries, residual=residual)


def _parameter(table: Tensor | None) -> Tensor | None:
    return None if table is None else table.float().clone().requires_grad_()


def _half(table: Tensor) -> Tensor:
    return table.detach().half().float()
