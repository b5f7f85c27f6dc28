"""Auxiliary channels predicted from their cores (ISCS, stage B), fitted on the rate alone: pictures stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outlay.codec.lic.iscs import Layout
from outlay.codec.lic.priors import LEAST_SCALE, normal_bits

RATE = 0.02  # Adam's step


@dataclass(frozen=True)
class Conditional:
    """For each channel: what is known of its integers once its core's are."""

    slope: Tensor
    """alpha, float32 [M]: the mean of an auxiliary's integer is alpha times its core's."""
    narrowing: Tensor
    """sqrt(1 - r^2), float32 [M]: what its deviation is multiplied by."""
    scale: Tensor
    """float32 [M]: the prior's own deviation of it; ones where the hyperprior tells it for each place."""
    used: Tensor
    """bool [M]: whether it pays. Others keep the prior's own table."""


@dataclass(frozen=True)
class Latents:
    """The integers of a picture's latents, as stage B is fitted to them."""

    values: Tensor
    """int64 [M, height, width]."""
    bits: Tensor
    """float32 [M, height, width]: what the prior alone spends."""
    scales: Tensor | None
    """float32 [M, height, width]: what the hyperprior tells; None without one."""


def fit(
    latents: Sequence[Latents], layout: Layout, correlation: Tensor, scale: Tensor, steps: int = 300
) -> Conditional:
    """Fits alpha and r of each auxiliary to the bits that it takes; a channel that takes no fewer keeps its prior.

    Starts where the paper says: alpha = rho s_j / s_i, r = 0. Normalized by the deviation, so that one step fits all.

    Args:
        latents: The integers of pictures.
        layout: Which channel has which core.
        correlation: rho between the channels' filters, in the layout's order, float64 [M, M].
        scale: The prior's deviation of each channel, float32 [M]; ones where the latents come with their own.
        steps: Steps of Adam.
    """
    channels = len(layout.core_of)
    slope, narrowing = torch.zeros(channels), torch.ones(channels)
    used = torch.zeros(channels, dtype=torch.bool)
    for channel, core in enumerate(layout.core_of):
        if core in (-1, channel):
            continue
        mine = torch.cat([each.values[channel].flatten() for each in latents]).float()
        known = torch.cat([each.values[core].flatten() for each in latents]).float()
        alone = torch.cat([each.bits[channel].flatten() for each in latents])
        told = [each.scales[channel].flatten() for each in latents if each.scales is not None]
        base = torch.cat(told) if told else scale[channel].expand_as(mine)
        found = _fit_channel(mine, known, base, float(correlation[channel, core]), steps)
        slope[channel], narrowing[channel] = found[0], found[1]
        used[channel] = found[2] < float(alone.double().sum())
    return Conditional(slope, narrowing, scale, used)


def _fit_channel(mine: Tensor, known: Tensor, base: Tensor, rho: float, steps: int) -> tuple[float, float, float]:
    """Returns alpha, sqrt(1 - r^2) and the bits that remain."""
    spread = known.std(unbiased=False).clamp_min(LEAST_SCALE)
    unit = float(mine.std(unbiased=False).clamp_min(LEAST_SCALE) / spread)
    normalized = torch.tensor(rho, requires_grad=True)
    turn = torch.zeros((), requires_grad=True)  # r = tanh(turn)

    def bits() -> Tensor:
        narrow = (1 - turn.tanh().square()).sqrt()
        return normal_bits(mine - normalized * unit * known, (base * narrow).clamp_min(LEAST_SCALE)).double().sum()

    with torch.no_grad():
        turn.fill_(0.1)  # r = 0 has no gradient
    optimizer = torch.optim.Adam([normalized, turn], RATE)
    best = (0.0, 1.0, float("inf"))
    for _ in range(steps):
        optimizer.zero_grad()
        spent = bits()
        if float(spent.detach()) < best[2]:
            narrow = float((1 - turn.detach().tanh().square()).sqrt())
            best = (float(normalized.detach()) * unit, narrow, float(spent.detach()))
        (spent / mine.numel()).backward()
        optimizer.step()
    return best


def saved_bits(latents: Sequence[Latents], core_of: Sequence[int]) -> float:
    """Returns what predicting auxiliaries from these cores can save, bits a symbol of theirs: -log2(1 - r^2) / 2.

    The bound for normal distributions; r is the correlation of the integers themselves.
    """
    total, count = 0.0, 0
    for channel, core in enumerate(core_of):
        if core in (-1, channel):
            continue
        pair = torch.stack(
            [torch.cat([each.values[c].flatten() for each in latents]).double() for c in (channel, core)]
        )
        pair = pair - pair.mean(1, keepdim=True)
        size = pair.norm(dim=1).prod()
        r = float((pair[0] @ pair[1]) / size) if size > 0 else 0.0
        total -= 0.5 * torch.log2(torch.tensor(max(1 - r * r, 1e-12))).item()
        count += 1
    return total / max(1, count)
