"""The first layer's input of a vision tower: patches of a tile through one linear layer, with positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from outlay.models.embedding import Embedding
from outlay.models.linear import Linear
from outlay.models.norm import LayerNorm


@dataclass(frozen=True)
class PatchStem:
    """Cuts a tile into patches and embeds them (Dosovitskiy et al. 2021, section 3.1)."""

    patch: int
    """Pixels of a patch's side."""
    patches: Linear
    """[hidden_size, 3 * patch * patch]: a patch's channels one after the other, each row by row."""
    positions: Tensor
    """What is added to each row, [rows, hidden_size]; the class token's embedding and its position where it has one."""
    class_token: bool
    """Whether the first row is a class token."""
    norm: LayerNorm | None
    """Follows the sum (CLIP)."""
    scale: float
    """Multiplies pixels."""
    mean: Tensor
    """Subtracted from them, by channel, [3]."""
    std: Tensor
    """Divides them, by channel, [3]."""

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return self.patches.nbytes + self.positions.nbytes + (0 if self.norm is None else self.norm.nbytes)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [height, width, 3] -> the first layer's input, [rows, hidden_size]"""
        values = (pixels.float() * self.scale - self.mean) / self.std
        height, width, side = pixels.shape[0] // self.patch, pixels.shape[1] // self.patch, self.patch
        cut = values[: height * side, : width * side].view(height, side, width, side, 3)
        x = self.patches(cut.permute(0, 2, 4, 1, 3).reshape(height * width, -1).contiguous())
        if self.class_token:
            x = torch.cat((x.new_zeros(1, x.shape[1]), x))
        x = x + self.positions
        return x if self.norm is None else self.norm(x)


def grid_positions(cells: int, side: int) -> Tensor:
    """Returns the place in a table of `side` x `side` positions of each cell of a grid of `cells` x `cells`, int64.

    A cell takes the position of its fraction of the side, so that smaller grids spread over the table (Idefics2).
    """
    borders = torch.arange(1 / side, 1.0, 1 / side)
    fractions = (torch.arange(cells, dtype=torch.float32) * (1.0 / torch.tensor(cells))).clamp(max=1.0 - 1e-6)
    places = torch.bucketize(fractions, borders, right=True)
    return (places[:, None] * side + places).flatten()


class NoEmbedding(Embedding):
    """In place of input embeddings: a tower's rows come from its stem."""

    def __init__(self, size: int) -> None:
        super().__init__(torch.zeros(1, size), torch.float32)
        self.row_bytes = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens int64 [n] -> zeros [n, size]"""
        return torch.zeros(len(tokens), self.table.shape[1], device=tokens.device)
