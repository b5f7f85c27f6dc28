"""Mixture of experts: a router picks a few small MLPs for each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outlay.models.linear import Linear
from outlay.models.mlp import Mlp


@dataclass(frozen=True)
class GroupedChoice:
    """Experts from the best groups alone, weighted by sigmoids (DeepSeek-V3, arXiv 2412.19437, section 2.1.2)."""

    bias: Tensor
    """Added to the sigmoids where experts are chosen, not where they are weighted, [experts]."""
    groups: int
    """Groups of neighbouring experts."""
    per_token: int
    """Groups that a row's experts come from."""
    scale: float
    """Multiplies the weights."""

    def __call__(self, logits: Tensor, experts: int) -> tuple[Tensor, Tensor]:
        """Returns the sigmoids and the indices of the chosen experts, each [n, experts], of logits [n, all experts]."""
        sigmoids = logits.sigmoid()
        scores = (sigmoids + self.bias).unflatten(-1, (self.groups, -1))
        best = scores.topk(min(2, scores.shape[-1]), dim=-1).values.sum(-1).topk(self.per_token, dim=-1).indices
        others = torch.ones(scores.shape[:-1], dtype=torch.bool, device=scores.device).scatter_(-1, best, False)
        chosen = scores.masked_fill(others[..., None], -torch.inf).flatten(-2).topk(experts, dim=-1).indices
        return sigmoids.gather(-1, chosen), chosen


class ExpertMlp:
    """The weighted sum of each row's `per_token` best experts, and of an MLP that every row goes through, if any."""

    def __init__(
        self,
        router: Linear,
        experts: Sequence[Mlp],
        per_token: int,
        normalise: bool,
        grouped: GroupedChoice | None = None,
        shared: Mlp | None = None,
    ) -> None:
        self.router, self.experts = router, tuple(experts)
        self.per_token, self.normalise = per_token, normalise
        self.grouped, self.shared = grouped, shared

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, hidden] -> [n, hidden]"""
        weights, chosen = self.route(x)
        out = torch.zeros_like(x) if self.shared is None else self.shared(x)
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
        logits = self.router(x).float()
        if self.grouped is None:
            weights, chosen = logits.softmax(-1).topk(self.per_token, dim=-1)
        else:
            weights, chosen = self.grouped(logits, self.per_token)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        if self.grouped is not None:
            weights = weights * self.grouped.scale
        return weights.to(x.dtype), chosen

    def _by_expert(self, chosen: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Returns the rows ordered by expert, their places in `chosen`, and the number of rows of each expert."""
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.experts)).tolist()
        return order // self.per_token, order, counts

    @property
    def linears(self) -> list[Linear]:
        """The linear layers of its experts, the shared one among them."""
        mlps = self.experts if self.shared is None else (*self.experts, self.shared)
        return [linear for mlp in mlps for linear in mlp.linears]

    def pass_bytes(self, tokens: int) -> int:
        """Returns the bytes of weights that a pass over `tokens` rows reads, if no two rows share an expert."""
        used = min(len(self.experts), tokens * self.per_token)
        shared = 0 if self.shared is None else self.shared.nbytes
        return self.router.nbytes + used * self.experts[0].nbytes + shared

    @property
    def multiplies(self) -> int:
        """Multiply-adds for each row."""
        router = self.router.in_features * self.router.out_features
        shared = 0 if self.shared is None else self.shared.multiplies
        return router + self.per_token * self.experts[0].multiplies + shared
