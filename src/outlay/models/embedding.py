"""Input embeddings, whose table may stay quantized: only the rows that are looked up become floats."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.models.quantized import QuantizedWeight


class Embedding:
    """tokens [n] -> embeddings [n, size] of `dtype`, times `scale`."""

    def __init__(self, table: Tensor | QuantizedWeight, dtype: torch.dtype, scale: float = 1.0) -> None:
        self.table, self.dtype, self.scale = table, dtype, scale
        self.row_bytes = table.nbytes // table.shape[0]

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens int64 [n] -> [n, size]"""
        if isinstance(self.table, QuantizedWeight):
            embeddings = self.table.rows(tokens).to(self.dtype)
        else:
            embeddings = F.embedding(tokens, self.table).to(self.dtype)
        return embeddings if self.scale == 1.0 else embeddings * self.scale
