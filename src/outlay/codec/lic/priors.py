"""Distributions of a channel's integers: the entropy bottleneck, and a normal distribution.

Ballé et al. 2018, https://arxiv.org/abs/1802.01436, appendix 6.1 (the bottleneck).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_SCALE = 0.11
"""The smallest standard deviation of a latent (Ballé et al. 2018)."""
LEAST_PROBABILITY = 1e-9
TAIL_MASS = 1e-9
"""What a table leaves out of a distribution, both tails together."""


class NormalPrior(nn.Module):
    """A normal distribution for each channel, over integers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    @property
    def centers(self) -> Tensor:
        """What is subtracted before rounding, float32 [channels]."""
        return self.mean.detach()

    @property
    def scales(self) -> Tensor:
        """Standard deviations, float32 [channels]."""
        return at_least(self.log_scale.exp(), LEAST_SCALE)

    @property
    def deviations(self) -> Tensor:
        """The standard deviation of each channel, float32 [channels], the same on every machine.

        An exponential in float32 is another library's on another processor; that of float64 is rounded to the same.
        """
        return self.log_scale.detach().double().exp().float().clamp_min(LEAST_SCALE)

    def bits(self, latents: Tensor) -> Tensor:
        """Returns the bits of latents, [batch, channels, height, width], each."""
        mean = self.mean[:, None, None]
        return normal_bits(latents - mean, self.scales[:, None, None].expand_as(latents))

    def channel_entropies(self) -> Tensor:
        """Returns the entropy of each channel's integers, float64 [channels], in bits."""
        return torch.stack([_entropy(pmf) for pmf in self.pmfs()])

    def pmfs(self) -> list[Tensor]:
        """Returns the probabilities of each channel's integers from `-(len - 1) / 2` on, float64."""
        return [normal_pmf(float(scale)) for scale in self.deviations]

    def offsets(self) -> list[int]:
        """Returns the integer of each channel's first probability."""
        return [-(len(pmf) // 2) for pmf in self.pmfs()]


class EntropyBottleneck(nn.Module):
    """A learned density for each channel, the derivative of a small monotone network."""

    WIDTHS = (1, 3, 3, 3, 3, 1)
    SPREAD = 10.0
    """About how wide the densities are at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        scale = self.SPREAD ** (1 / (len(self.WIDTHS) - 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for layer, (reads, writes) in enumerate(zip(self.WIDTHS, self.WIDTHS[1:], strict=False)):
            first = math.log(math.expm1(1 / scale / writes))
            self.matrices.append(nn.Parameter(torch.full((channels, writes, reads), first)))
            self.biases.append(nn.Parameter(torch.empty(channels, writes, 1).uniform_(-0.5, 0.5)))
            if layer < len(self.WIDTHS) - 2:
                self.factors.append(nn.Parameter(torch.zeros(channels, writes, 1)))
        self.quantiles = nn.Parameter(torch.tensor([-self.SPREAD, 0.0, self.SPREAD]).repeat(channels, 1, 1))

    @property
    def centers(self) -> Tensor:
        """The medians, which are subtracted before rounding, float32 [channels]."""
        return self.quantiles.detach()[:, 0, 1]

    @property
    def deviations(self) -> Tensor:
        """The standard deviation of each channel's integers, float32 [channels]."""
        found = []
        for pmf, first in zip(self.pmfs(), self.offsets(), strict=True):
            share, integers = pmf / pmf.sum(), torch.arange(first, first + len(pmf), dtype=torch.float64)
            mean = (share * integers).sum()
            found.append((share * (integers - mean).square()).sum().sqrt())
        return torch.stack(found).float().clamp_min(LEAST_SCALE)

    def bits(self, latents: Tensor) -> Tensor:
        """Returns the bits of latents, [batch, channels, height, width], each."""
        values = latents.transpose(0, 1).reshape(self.channels, 1, -1)
        found = -self.probability(values).clamp_min(LEAST_PROBABILITY).log2()
        batch, channels, *rest = latents.shape
        return found.reshape(channels, batch, *rest).transpose(0, 1)

    def probability(self, values: Tensor) -> Tensor:
        """Returns the probability of the unit interval around values, [channels, 1, count]."""
        low, high = self._logits(values - 0.5), self._logits(values + 0.5)
        sign = -torch.sign(low + high).detach()  # of the two equal forms, the one without cancellation
        return (torch.sigmoid(sign * high) - torch.sigmoid(sign * low)).abs()

    def quantile_loss(self) -> Tensor:
        """Returns how far the quantiles are from the tails' bounds and the median."""
        bound = math.log(2 / TAIL_MASS - 1)
        wanted = torch.tensor([-bound, 0.0, bound], device=self.quantiles.device)
        return (self._logits(self.quantiles, frozen=True) - wanted).abs().sum()

    def pmfs(self) -> list[Tensor]:
        """Returns the probabilities of each channel's integers between its outer quantiles, float64."""
        low, high = self._bounds()
        with torch.no_grad():
            twin = EntropyBottleneck(self.channels).double()
            twin.load_state_dict({name: tensor.double() for name, tensor in self.state_dict().items()})
            found = []
            steps = torch.arange(int((low + high).max()) + 1, dtype=torch.float64)
            every = twin.probability(steps + (self.centers.double() - low)[:, None, None])
            for channel in range(self.channels):
                found.append(every[channel, 0, : int(low[channel] + high[channel]) + 1].clone())
        return found

    def offsets(self) -> list[int]:
        """Returns the integer of each channel's first probability."""
        return [-int(low) for low in self._bounds()[0]]

    def channel_entropies(self) -> Tensor:
        """Returns the entropy of each channel's integers, float64 [channels], in bits."""
        return torch.stack([_entropy(pmf) for pmf in self.pmfs()])

    def _bounds(self) -> tuple[Tensor, Tensor]:
        """How many integers each channel has below its median and above it."""
        low, median, high = self.quantiles.detach()[:, 0].unbind(1)
        return (median - low).ceil().clamp_min(0).long(), (high - median).ceil().clamp_min(0).long()

    def _logits(self, values: Tensor, *, frozen: bool = False) -> Tensor:
        for layer, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            factor = self.factors[layer] if layer < len(self.factors) else None
            if frozen:
                matrix, bias, factor = matrix.detach(), bias.detach(), None if factor is None else factor.detach()
            values = F.softplus(matrix) @ values + bias
            if factor is not None:
                values = values + factor.tanh() * values.tanh()
        return values


def normal_bits(residuals: Tensor, scales: Tensor) -> Tensor:
    """Returns the bits of the unit interval around residuals under normal distributions with these deviations."""
    distance = residuals.abs()
    upper, lower = _below((0.5 - distance) / scales), _below((-0.5 - distance) / scales)
    return -(upper - lower).clamp_min(LEAST_PROBABILITY).log2()


def normal_pmf(scale: float, shift: float = 0.0) -> Tensor:
    """Returns the probabilities of the integers around 0, float64 [2 n + 1], of a normal distribution.

    Args:
        scale: Its standard deviation.
        shift: Its mean, within -0.5..0.5.
    """
    half = math.ceil(scale * _TAIL_DEVIATIONS)
    distance = (torch.arange(-half, half + 1, dtype=torch.float64) - shift).abs()
    return _below((0.5 - distance) / scale) - _below((-0.5 - distance) / scale)


def _below(x: Tensor) -> Tensor:
    """The standard normal distribution's mass below x."""
    return 0.5 * torch.erfc(x * -(0.5**0.5))


_TAIL_DEVIATIONS = 6.109410204869  # -ndtri(TAIL_MASS / 2)


def _entropy(pmf: Tensor) -> Tensor:
    share = pmf / pmf.sum()
    return -(share * share.clamp_min(1e-300).log2()).sum()


def at_least(x: Tensor, bound: float) -> Tensor:
    """Returns the larger of x and a bound; the gradient also passes where it would move x up to the bound."""
    found = _AtLeast.apply(x, bound)
    assert isinstance(found, Tensor)
    return found


class _AtLeast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None
