"""KSM: gains on a kernel, which the means of a picture's channels give."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StarReLU(nn.Module):
    """s relu(t)^2 + b with learned s and b."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same shape."""
        return self.scale * F.relu(x) ** 2 + self.bias


class RunningNorm(nn.BatchNorm1d):
    """Batch normalisation that takes its running statistics for a batch of one, which has none of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Takes `[batch, channels]`."""
        if len(x) > 1 or not self.training:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class GlobalGains(nn.Module):
    """KSM's global branch: the channels' means give a gain for each frequency group, channel, filter and position.

    Args:
        c_in: channels read.
        c_out: filters.
        positions: weights of a filter and channel (k x k).
        gains: frequency groups, over all copies.
        full: whether channels, filters and positions get gains too.
        norm: "layer" or "batch".
    """

    def __init__(self, c_in: int, c_out: int, positions: int, gains: int, *, full: bool, norm: str) -> None:
        super().__init__()
        hidden = max(c_in // 16, 16)
        self.squeeze = nn.Linear(c_in, hidden, bias=False)
        self.norm = RunningNorm(hidden) if norm == "batch" else nn.LayerNorm(hidden)
        self.act = StarReLU()
        self.groups = zeroed(nn.Linear(hidden, gains))
        self.channels = zeroed(nn.Linear(hidden, c_in)) if full else None
        self.filters = zeroed(nn.Linear(hidden, c_out)) if full else None
        self.positions = zeroed(nn.Linear(hidden, positions)) if full and positions > 1 else None

    def forward(self, mean: Tensor) -> dict[str, Tensor]:
        """Takes the means `[batch, c_in]` and returns the gains of each kind, `[batch, ...]`."""
        hidden = self.act(self.norm(self.squeeze(mean)))
        kinds = ("groups", "channels", "filters", "positions")
        heads = {name: head for name in kinds if (head := getattr(self, name)) is not None}
        return {name: 2 * torch.sigmoid(head(hidden)) for name, head in heads.items()}


class LocalGains(nn.Module):
    """KSM's local branch: a convolution along the channels gives a gain for each single weight.

    Args:
        c_in: channels read.
        outputs: filters x positions.
    """

    def __init__(self, c_in: int, outputs: int) -> None:
        super().__init__()
        taps = round(math.log2(c_in) / 2 + 0.5) // 2 * 2 + 1
        self.norm = nn.LayerNorm(c_in)
        self.conv = nn.Conv1d(1, outputs, taps, padding=taps // 2, bias=False)
        nn.init.zeros_(self.conv.weight)

    def forward(self, mean: Tensor, c_out: int, sides: tuple[int, int]) -> Tensor:
        """Takes `[batch, c_in]` and returns the gains `[batch, c_out, c_in, *sides]`."""
        logits = self.conv(self.norm(mean)[:, None])  # [batch, c_out x positions, c_in]
        gains = 2 * torch.sigmoid(logits)
        return gains.view(len(mean), c_out, *sides, mean.shape[1]).permute(0, 1, 4, 2, 3)


def zeroed(head: Any) -> Any:
    """Returns a layer whose outputs start at 0, so that the gains made of them start at 1."""
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
