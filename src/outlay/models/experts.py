"""Mixture of experts: a router picks a few small MLPs for each token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outlay.models.linear import Linear
from outlay.models.mlp import Mlp


class ExpertMlp:
    """The weighted sum of each row's `per_token` most probable experts."""

    def __init__(self, router: Linear, experts: Sequence[Mlp], per_token: int, normalise: bool) -> None:
        self.router, self.experts = router, tuple(experts)
        self.per_token, self.normalise = per_token, normalise

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, hidden] -> [n, hidden]"""
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        rows, order, counts = self._by_expert(chosen)
        start = 0
        for expert, count in enumerate(counts):
            if count:
                mine = slice(start, start + count)
                share = self.experts[expert](x[rows[mine]]) * weights.flatten()[order[mine], None]
                out.index_add_(0, rows[mine], share)
                start += count
        return out

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the weights and the indices of the chosen experts, each [n, per_token]."""
        weights, chosen = self.router(x).float().softmax(-1).topk(self.per_token, dim=-1)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(x.dtype), chosen

    def _by_expert(self, chosen: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Returns the rows ordered by expert, their places in `chosen`, and the number of rows of each expert."""
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.experts)).tolist()
        return order // self.per_token, order, counts

    @property
    def linears(self) -> list[Linear]:
        """The linear layers of its experts."""
        return [linear for expert in self.experts for linear in expert.linears]

    def pass_bytes(self, tokens: int) -> int:
        """Returns the bytes of weights that a pass over `tokens` rows reads, if no two rows share an expert."""
        used = min(len(self.experts), tokens * self.per_token)
        return self.router.nbytes + used * self.experts[0].nbytes

    @property
    def multiplies(self) -> int:
        """Multiply-adds for each row."""
        router = self.router.in_features * self.router.out_features
        return router + self.per_token * self.experts[0].multiplies
